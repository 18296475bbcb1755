"""What is chosen on the validation rows after training: one temperature, and from which score on a class is there."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from raycnn.errors import CheckpointError

Floats = npt.NDArray[np.float64]
Goal = Literal["f1", "balanced_accuracy", "none"]

_LARGEST: Final = 20.0
_CELLS: Final = 1 << 22


@dataclass(frozen=True)
class Calibration:
    """How outputs become probabilities and decisions.

    Args:
        temperature: logits are divided by it before they become probabilities.
        cuts: of outputs that each say yes or no: the logit above which it is yes; none: 0.
    """

    temperature: float = 1.0
    cuts: tuple[float, ...] = ()

    @staticmethod
    def of(tree: Mapping[str, Any] | None) -> Calibration:
        """What a commit's manifest says; nothing is changed where it says nothing. CheckpointError if it is damaged."""
        if tree is None:
            return Calibration()
        try:
            found = Calibration(float(tree["temperature"]), tuple(map(float, tree["cuts"])))
            if not found.temperature > 0 or not all(map(math.isfinite, (found.temperature, *found.cuts))):
                raise ValueError("a number out of range")
        except (LookupError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"not a calibration: {error!r}", where="MANIFEST.json", fix="use another step"
            ) from None
        return found

    def scaled(self, logits_NK: npt.NDArray[Any]) -> Floats:
        """The logits of the probabilities."""
        return np.asarray(logits_NK.astype(np.float64) / self.temperature)

    def decided(self, logits_NK: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Above 0 where the answer is yes."""
        return logits_NK.astype(np.float64) - np.array(self.cuts) if self.cuts else logits_NK

    def around(self, correct: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """A correction of the logits of probabilities, as one of logits that the temperature has yet to divide."""
        if self.temperature == 1:
            return correct
        return lambda logits_NK: (
            correct((logits_NK / self.temperature).astype(np.float32)) * np.float32(self.temperature)
        )

    def told(self, classes: Sequence[str]) -> dict[str, Any]:
        """{temperature, thresholds: {class: the probability above which it is there} or None}, of the last classes."""
        of = classes[len(classes) - len(self.cuts) :]
        at = [1 / (1 + math.exp(-cut / self.temperature)) for cut in self.cuts]
        return {"temperature": self.temperature, "thresholds": dict(zip(of, at, strict=True)) or None}


def fit_temperature(logits_NK: npt.NDArray[Any], labels_N: npt.NDArray[Any]) -> float:
    """The temperature with the least mean cross entropy, in [1/20, 20] (Guo et al., 2017).

    In its inverse that is convex: Newton's steps, and bisection where they leave what is known to hold it. Sums run in
    row order in float64, so equal rows give equal bits.
    """
    low, high, inverse = 1 / _LARGEST, _LARGEST, 1.0
    for _ in range(60):
        slope, curvature = _slopes(logits_NK, labels_N, inverse)
        low, high = (low, inverse) if slope > 0 else (inverse, high)
        newton = inverse - slope / curvature if curvature > 0 else low
        after = newton if low < newton < high else math.sqrt(low * high)
        if abs(after - inverse) <= 1e-10 * inverse:
            break
        inverse = after
    return 1 / inverse


def _slopes(logits_NK: npt.NDArray[Any], labels_N: npt.NDArray[Any], inverse: float) -> tuple[float, float]:
    """First and second derivative of the summed cross entropy of logits times `inverse`."""
    slope = curvature = 0.0
    rows = max(1, _CELLS // logits_NK.shape[1])
    for start in range(0, len(logits_NK), rows):
        z = logits_NK[start : start + rows].astype(np.float64)
        z -= z.max(axis=1, keepdims=True)
        p = np.exp(inverse * z)
        p /= p.sum(axis=1, keepdims=True)
        mean = (p * z).sum(axis=1)
        slope += float((mean - z[np.arange(len(z)), labels_N[start : start + rows]]).sum())
        curvature += float((p * (z - mean[:, None]) ** 2).sum())
    return slope, curvature


def fit_cut(scores_N: Floats, positive_N: npt.NDArray[np.bool_], goal: Goal) -> float:
    """The score above which yes is best by F1 or balanced accuracy: midway between two rows'; the highest of equals.

    0 without rows of both kinds, and for "none".
    """
    num_yes = int(positive_N.sum())
    num_no = len(positive_N) - num_yes
    if goal == "none" or not num_yes or not num_no:
        return 0.0
    order = np.argsort(-scores_N, kind="stable")
    ordered = scores_N[order]
    ends = np.flatnonzero(np.append(np.diff(ordered) != 0, True))
    right, said = np.cumsum(positive_N[order])[ends], ends + 1
    value = 2 * right / (said + num_yes) if goal == "f1" else right / num_yes - (said - right) / num_no
    best = int(ends[np.argmax(value)])
    below = ordered[best + 1] if best + 1 < len(ordered) else ordered[best] - 1
    return float((ordered[best] + below) / 2)
