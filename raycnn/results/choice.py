"""What frozen features say of networks: a front, a network, depths to search; arithmetic over scores and costs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from raycnn.training.metrics import Mode

MANY_ROWS: Final = 1000
"""Training rows from which on it is worth trying to train the whole network."""


@dataclass(frozen=True)
class Cut:
    """A network at one of its cuts.

    Args:
        network: its number among the candidates.
        depth: of the suffix that begins there.
        features: how many there are.
        scores: the metric on each fold, of a head that was fitted to the features of the others; None: none.
        ms: milliseconds an image takes to get there.
        train_ms: and in training at this depth, with backward passes that cost two forward ones.
        trainable: parameters that would train at this depth.
    """

    network: int
    depth: int
    features: int
    scores: tuple[float | None, ...]
    ms: float
    train_ms: float
    trainable: int

    @property
    def score(self) -> float | None:
        """The mean over the folds."""
        known = [score for score in self.scores if score is not None]
        return float(np.mean(known)) if known else None

    @property
    def spread(self) -> float | None:
        """The standard deviation over the folds."""
        known = [score for score in self.scores if score is not None]
        return float(np.std(known, ddof=1)) if len(known) > 1 else None


def front(cuts: Sequence[Cut], mode: Mode) -> list[bool]:
    """Which of them are on the Pareto front: no other is as good and takes as little time, and one of both less."""
    points = [(_good(cut, mode), -cut.ms) for cut in cuts]
    return [
        good > -math.inf and not any(a >= good and b >= fast and (a, b) != (good, fast) for a, b in points)
        for good, fast in points
    ]


def best(cuts: Sequence[Cut], mode: Mode) -> Cut:
    """The one with the best mean; of equal ones the first."""
    return max(cuts, key=lambda cut: _good(cut, mode))


def as_good(cut: Cut, other: Cut, mode: Mode) -> bool:
    """Whether a cut is no worse than a better one by more than one standard error of their differences on the folds.

    The rule of one standard error: Breiman et al., Classification and Regression Trees, 1984.
    """
    sign = 1 if mode == "max" else -1
    pairs = zip(cut.scores, other.scores, strict=True)
    gains = [sign * (a - b) for a, b in pairs if a is not None and b is not None]
    if cut is other or len(gains) < 2:
        return cut is other
    return bool(np.mean(gains) >= -np.std(gains, ddof=1) / math.sqrt(len(gains)))


def choose_network(cuts: Sequence[Cut], mode: Mode) -> int:
    """Of the networks whose best cut is as good as the best one, that which takes the least time for an image.

    Heads on frozen features rank networks much as fine-tunes do (Kornblith, Shlens and Le, 2019), and among equals
    time is all that differs.
    """
    top = best(cuts, mode)
    by_network = {cut.network: [each for each in cuts if each.network == cut.network] for cut in cuts}
    equal = [number for number, own in by_network.items() if as_good(best(own, mode), top, mode)]
    return min(equal, key=lambda number: (max(cut.ms for cut in by_network[number]), number))


def choose_depths(cuts: Sequence[Cut], mode: Mode, rows: int) -> list[int]:
    """Unfreezing depths of a network that are worth a search, deepest last.

    A head on shallow features says nothing of a fine-tune at that depth: what was cut off would be there, and train.
    But where the features at depth d are as good as any later ones, the last d stages add nothing to these images:
    they are what is to be learnt anew. So: the head alone, the best cut's depth, the deepest such d, one stage more,
    and from MANY_ROWS training rows on the whole network, which often wins where there are enough not to overfit.

    Args:
        cuts: of one network.
        rows: training rows of a fine-tune.
    """
    deepest = max(cut.depth for cut in cuts)
    if not any(cut.depth == 0 for cut in cuts):  # it cannot be cut
        return [deepest]
    top = best(cuts, mode)
    serving = max(cut.depth for cut in cuts if as_good(cut, top, mode))
    depths = {0, top.depth, serving, min(serving + 1, deepest)}
    return sorted(depths | {deepest} if rows >= MANY_ROWS else depths)


def _good(cut: Cut, mode: Mode) -> float:
    if cut.score is None:
        return -math.inf
    return cut.score if mode == "max" else -cut.score


def as_json(cut: Cut, on_front: bool) -> dict[str, Any]:
    """For the result."""
    names = ("depth", "features", "score", "spread", "ms", "train_ms", "trainable")
    return {name: getattr(cut, name) for name in names} | {"scores": list(cut.scores), "front": on_front}
