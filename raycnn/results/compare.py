"""Two sets of images by their features: how far they are apart, in which classes' shares, and what that advises."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from raycnn.data.manifest import Kind, row_names, shown_names
from raycnn.results.distance import chance, distance
from raycnn.results.linear import fit_chosen
from raycnn.results.priors import estimated_shift
from raycnn.training.losses import log_priors

FEWEST: Final = 20
"""Images of a set from which on it is compared."""

_MARGIN: Final = 0.05  # of the area under the ROC curve
_SHARES: Final = 0.1  # of the rows in other classes, beyond what the estimate says of a half of the training rows
_INNER: Final = 5
_LESS: Final = 0.75

Features = npt.NDArray[np.float32]
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Side:
    """Images that are compared.

    Args:
        table: their rows.
        plain: features of the network as it is.
        calibrated: with BatchNorm statistics of these very images; None: it has none, or that is not asked.
    """

    table: pa.Table
    plain: Features
    calibrated: Features | None = None

    def take(self, rows: Ints) -> Side:
        """Some of them."""
        calibrated = None if self.calibrated is None else self.calibrated[rows]
        return Side(self.table.take(pa.array(rows)), self.plain[rows], calibrated)


def compare(
    ours: Side, target: Side, unseen: Side | None, kind: Kind, classes: Sequence[str], listed: int
) -> dict[str, Any]:
    """The distances of all that is to be compared, always between sets of equal sizes.

    Args:
        ours: training rows, at least twice as many as there are of the target.
        target: the images in question.
        unseen: validation rows, which a network that was trained has not seen either.
        kind: of the training rows' targets.
        classes: names by label.
        listed: how many of the target are to be named.

    Returns:
        {rows, distances: {target, halves: of two halves of the training rows, val, recalibrated: of the target with
        each side by its own statistics (other features: its Fréchet distance is to be seen beside that of
        recalibrated_halves), same_shares: with training rows drawn as the target's classes}, each {rows, frechet,
        auroc, a_distance} or None, shares: {class: [of the training rows, estimated of the target]} or None, moved:
        {target, halves: share of the rows that are in other classes by that} or None, drifted: [{key, logit}]}
    """
    first, second = _halves(ours, len(target.table))
    near, scores_N = distance(first.plain, target.plain)
    found: dict[str, Any] = {"target": near, "halves": distance(first.plain, second.plain)[0]}
    found |= {"val": None, "recalibrated": None, "recalibrated_halves": None, "same_shares": None}
    if unseen is not None:
        size = min(len(unseen.table), len(first.table))
        found["val"] = distance(first.plain[:size], unseen.plain[:size])[0]
    if first.calibrated is not None and second.calibrated is not None and target.calibrated is not None:
        found["recalibrated"] = distance(first.calibrated, target.calibrated)[0]
        found["recalibrated_halves"] = distance(first.calibrated, second.calibrated)[0]
    shares, moved = None, None
    if kind == "class":
        own_K = _shares(first, len(classes))
        new_K, same_K = (estimated_shares(first, each, len(classes)) for each in (target, second))
        shares = {name: [float(a), float(b)] for name, a, b in zip(classes, own_K, new_K, strict=True)}
        moved = {"target": _variation(own_K, new_K), "halves": _variation(own_K, same_K)}
        if _shifted(moved):
            found["same_shares"] = _with_shares(ours, target, new_K)
    names = shown_names(target.table).to_pylist()
    most = np.argsort(-scores_N, kind="stable")[:listed]
    return {
        "rows": len(target.table),
        "distances": {name: each and each.as_json() for name, each in found.items()},
        "shares": shares,
        "moved": moved,
        "drifted": [{"key": names[row], "logit": float(scores_N[row])} for row in most],
    }


def advice(found: Mapping[str, Any], target: str) -> str:
    """One sentence that names the setting.

    Images count as others if a classifier tells them from training rows better than it tells halves of the training
    rows, or validation rows, from each other: by 0.05 of AUROC and two standard errors of chance. If drawing training
    rows with the target's shares of classes undoes that, the shares were all; if statistics of their own take a quarter
    of it away, recalibration helps.
    """
    far, shifted = excess(found, "target"), _shifted(found["moved"])
    prior = "evaluate.prior: estimated (predict.prior: uniform, if that is what it comes to)"
    if far <= _margin(found):
        return f"the shares of the classes differ: {prior}" if shifted else "nothing to do: no shift is seen"
    if found["distances"]["same_shares"] and excess(found, "same_shares") <= _margin(found):
        return f"only the shares of the classes differ: {prior}"
    if found["distances"]["recalibrated"] and excess(found, "recalibrated") < _LESS * far:
        first, then = "train with model.recalibrate: train", "start from that run with model.recalibrate"
        return f"the images differ, and recalibration helps: {first}, then {then}: {target}"
    return "the images differ, and recalibration does not help: label some of those listed and add them to data.source"


def excess(found: Mapping[str, Any], name: str) -> float:
    """AUROC of a comparison beyond that of images which are known to be alike."""
    distances = found["distances"]
    alike = [distances[each]["auroc"] for each in ("halves", "val") if distances[each]]
    return float(distances[name]["auroc"] - max(0.5, *alike))


def estimated_shares(ours: Side, target: Side, num_classes: int) -> Floats:
    """Shares of the classes among unlabelled images, by a linear head on the features; see `priors.estimated_shift`.

    It holds where the images of a class look alike on both sides.
    """
    labels_N = ours.table["label"].to_numpy().astype(np.int64)
    held_N = np.random.default_rng(0).permutation(len(labels_N)) % _INNER == 0
    head = fit_chosen(ours.plain, labels_N, held_N, "single-label", num_classes)
    learned_K = log_priors(np.bincount(labels_N, minlength=num_classes))
    return np.asarray(np.exp(estimated_shift(head(target.plain), learned_K) + learned_K))


def _halves(ours: Side, size: int) -> tuple[Side, Side]:
    """Two random sets of so many rows with nothing in common; groups stay together."""
    names = list(row_names(ours.table))
    groups = ours.table["group"].to_pylist()
    units = [f"row {name}" if group is None else f"group {group}" for name, group in zip(names, groups, strict=True)]
    _, unit_N = np.unique(units, return_inverse=True)
    places = np.random.default_rng(0).permutation(int(unit_N.max()) + 1)
    order = np.argsort(places[unit_N], kind="stable")
    size = min(size, len(order) // 2)
    return ours.take(order[:size]), ours.take(order[len(order) - size :])


def _shares(side: Side, num_classes: int) -> Floats:
    counts_K = np.bincount(side.table["label"].to_numpy(), minlength=num_classes)
    return np.asarray(counts_K / counts_K.sum())


def _variation(a_K: Floats, b_K: Floats) -> float:
    """The share of the rows that would have to change their class."""
    return float(np.abs(a_K - b_K).sum() / 2)


def _shifted(moved: Mapping[str, float] | None) -> bool:
    return moved is not None and moved["target"] - moved["halves"] > _SHARES


def _with_shares(ours: Side, target: Side, shares_K: Floats) -> Any:
    """The distance of the target from training rows with these shares of classes; None: there are too few of some."""
    labels_N = ours.table["label"].to_numpy()
    counts_K = np.bincount(labels_N, minlength=len(shares_K))
    size = min(len(target.table), int(np.min(counts_K[shares_K > 0] / shares_K[shares_K > 0])))
    wanted_K = np.floor(shares_K * size).astype(np.int64)
    if wanted_K.sum() < FEWEST:
        return None
    order = np.random.default_rng(0).permutation(len(labels_N))
    rows = np.concatenate([order[labels_N[order] == k][:wanted] for k, wanted in enumerate(wanted_K)])
    return distance(ours.plain[rows], target.plain[: len(rows)])[0]


def _margin(found: Mapping[str, Any]) -> float:
    return max(_MARGIN, 2 * chance(found["rows"]))
