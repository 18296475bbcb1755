"""What it costs to compute, to keep and to take again what trials need of an image; and what is chosen therefore."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Choice = Literal["share", "activations", "pixels"]


@dataclass(frozen=True)
class CutCost:
    """Of the cut before the suffix of one depth, per image on one rank.

    Args:
        prefix_s: seconds from the image to the cut.
        suffix_s: seconds of a training step from there on.
        bytes: of the activation.
        keep_s, take_s: seconds to put an activation into the node's cache, and to get it from there.
        trial_bytes: memory of one trial: its suffix, gradients and optimizer.
    """

    prefix_s: float
    suffix_s: float
    bytes: int
    keep_s: float
    take_s: float
    trial_bytes: int


@dataclass(frozen=True)
class Costs:
    """Measured on a node of the search.

    Args:
        read_s: seconds to fetch, decode and crop an image on one core.
        pixel_bytes: of a cropped image.
        cuts: by depth.
        rss_bytes: memory of the process that measured, after a step at every depth.
    """

    read_s: float
    pixel_bytes: int
    cuts: Mapping[int, CutCost]
    rss_bytes: int


@dataclass(frozen=True)
class Uses:
    """How often what is kept would be used.

    Args:
        per_view: times that one random view of an image is asked for.
        views: rows times views, those of all epochs and the validation rows'.
    """

    per_view: float
    views: int


def choose(costs: Costs, uses: Uses, limit_bytes: int, wanted: str) -> dict[int, Choice]:
    """What to keep for each depth: the cheapest per image over all its uses, as far as it fits into `limit_bytes`.

    sharing computes read + prefix at each use; activations once, and a put, and a get at each use; pixels the read
    once, and the prefix at each use. What fits is decided by what is saved per byte.

    Args:
        costs: measured.
        uses: expected.
        limit_bytes: of the node's cache.
        wanted: search.reuse; anything but "auto" is taken where it fits.
    """
    options = {depth: _seconds(costs, cut, uses.per_view) for depth, cut in costs.cuts.items()}
    chosen: dict[int, Choice] = {}
    for depth, seconds in options.items():
        best: Choice = min(seconds, key=lambda each: seconds[each])
        chosen[depth] = best if wanted == "auto" else wanted  # type: ignore[assignment]
    by_gain = sorted(chosen, key=lambda d: (options[d]["share"] - options[d][chosen[d]]) / _bytes(costs, d, chosen[d]))
    while by_gain and kept_bytes(costs, chosen, uses.views) > limit_bytes:
        chosen[by_gain.pop(0)] = "share"
    return chosen


def kept_bytes(costs: Costs, chosen: Mapping[int, Choice], views: int) -> int:
    """Bytes in the cache when all views are kept."""
    return sum(_kept_bytes(costs, chosen)) * views


def describe(costs: Costs, chosen: Mapping[int, Choice]) -> list[dict[str, Any]]:
    """{depth, choice, bytes_per_image, seconds_per_image} by depth; the seconds are those of computing it."""
    return [
        {
            "depth": depth,
            "choice": chosen[depth],
            "bytes_per_image": costs.pixel_bytes if chosen[depth] == "pixels" else cut.bytes,
            "seconds_per_image": costs.read_s + cut.prefix_s,
        }
        for depth, cut in sorted(costs.cuts.items())
    ]


def _seconds(costs: Costs, cut: CutCost, uses: float) -> dict[Choice, float]:
    per_byte_keep, per_byte_take = cut.keep_s / max(cut.bytes, 1), cut.take_s / max(cut.bytes, 1)
    pixels = costs.pixel_bytes
    return {
        "share": uses * (costs.read_s + cut.prefix_s),
        "activations": costs.read_s + cut.prefix_s + cut.keep_s + uses * cut.take_s,
        "pixels": costs.read_s + pixels * per_byte_keep + uses * (pixels * per_byte_take + cut.prefix_s),
    }


def _bytes(costs: Costs, depth: int, choice: Choice) -> int:
    return {"share": 1, "activations": max(costs.cuts[depth].bytes, 1), "pixels": costs.pixel_bytes}[choice]


def _kept_bytes(costs: Costs, chosen: Mapping[int, Choice]) -> list[int]:
    kept = [costs.cuts[depth].bytes for depth, choice in chosen.items() if choice == "activations"]
    return [*kept, costs.pixel_bytes] if "pixels" in chosen.values() else kept
