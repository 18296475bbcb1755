"""What it costs to compute, to keep and to take again what trials need of an image; and what is chosen therefore."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from raycnn.config import Depth
from raycnn.training.kept import Choice

CHOICES: Final[tuple[Choice, ...]] = ("share", "activations", "pixels")


_MARKS: Final = 64  # bytes beside each row: its key, its mark, and some to spare


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
        depths: the deepest depth of each `model.unfreeze`, by its text.
        rss_bytes: memory of the process that measured, after a step at every depth.
    """

    read_s: float
    pixel_bytes: int
    cuts: Mapping[Depth, CutCost]
    depths: Mapping[str, Depth]
    rss_bytes: int


def merged(found: Sequence[Costs]) -> Costs:
    """What several packs measured of different depths, side by side as they will work; shallow depths first."""
    cuts = {depth: cut for costs in found for depth, cut in costs.cuts.items()}
    depths = {text: depth for costs in found for text, depth in costs.depths.items()}
    shallow_first = sorted(cuts, key=lambda depth: cuts[depth].trial_bytes)
    cuts = {depth: cuts[depth] for depth in shallow_first}
    return replace(found[0], cuts=cuts, depths=depths, rss_bytes=max(costs.rss_bytes for costs in found))


@dataclass(frozen=True)
class Uses:
    """How often what is kept would be used.

    Args:
        per_view: times that one random view of an image is asked for.
        views: rows times views, those of all epochs and the validation rows'.
    """

    per_view: float
    views: int


def choose(costs: Costs, uses: Uses, limit_bytes: int, wanted: str) -> dict[Depth, Choice]:
    """What to keep for each depth: the plan that costs least over all uses, of those that fit into `limit_bytes`.

    Sharing computes read + prefix at each use; activations are computed once, put once, and taken at each use; of
    pixels the read is done once, and the prefix at each use. A pass over the images for one depth is a pass for all, so
    either every depth shares or none does.

    Args:
        costs: measured.
        uses: expected.
        limit_bytes: of the node's cache.
        wanted: search.reuse; anything but "auto" is taken if it fits.
    """
    seconds = {depth: _seconds(costs, cut, uses.per_view) for depth, cut in costs.cuts.items()}
    plans: dict[str, dict[Depth, Choice]] = {name: dict.fromkeys(seconds, name) for name in CHOICES}
    plans["auto"] = {
        depth: "activations" if by["activations"] <= by["pixels"] else "pixels" for depth, by in seconds.items()
    }
    if wanted != "auto":
        fits = kept_bytes(costs, plans[wanted], uses.views) <= limit_bytes
        return plans[wanted if fits else "share"]
    fitting = [plan for plan in plans.values() if kept_bytes(costs, plan, uses.views) <= limit_bytes]
    return min(fitting, key=lambda plan: sum(seconds[depth][name] for depth, name in plan.items()))


def kept_bytes(costs: Costs, chosen: Mapping[Depth, Choice], views: int) -> int:
    """Bytes in the cache when all views are kept."""
    return sum(_kept_bytes(costs, chosen)) * views


def describe(costs: Costs, chosen: Mapping[Depth, Choice]) -> list[dict[str, Any]]:
    """{depth, choice, bytes_per_image, seconds_per_image} by depth; the seconds are those of computing it."""
    return [
        {
            "depth": depth,
            "choice": chosen[depth],
            "bytes_per_image": costs.pixel_bytes if chosen[depth] == "pixels" else cut.bytes,
            "seconds_per_image": costs.read_s + cut.prefix_s,
        }
        for depth, cut in costs.cuts.items()
    ]


def _seconds(costs: Costs, cut: CutCost, uses: float) -> dict[Choice, float]:
    per_byte_keep, per_byte_take = cut.keep_s / max(cut.bytes, 1), cut.take_s / max(cut.bytes, 1)
    pixels = costs.pixel_bytes
    return {
        "share": uses * (costs.read_s + cut.prefix_s),
        "activations": costs.read_s + cut.prefix_s + cut.keep_s + uses * cut.take_s,
        "pixels": costs.read_s + pixels * per_byte_keep + uses * (pixels * per_byte_take + cut.prefix_s),
    }


def _kept_bytes(costs: Costs, chosen: Mapping[Depth, Choice]) -> list[int]:
    kept = [costs.cuts[depth].bytes for depth, choice in chosen.items() if choice == "activations"]
    kept += [costs.pixel_bytes] if "pixels" in chosen.values() else []
    return [size + _MARKS for size in kept]
