"""How far two sets of features lie apart."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from raycnn.results.linear import fit_chosen
from raycnn.training.metrics import area_under_roc

Features = npt.NDArray[np.float32]
Floats = npt.NDArray[np.float64]

_FOLDS: Final = 5


@dataclass(frozen=True)
class Distance:
    """Of two sets of features.

    Args:
        rows: of either set, or of the smaller one; Fréchet distances of other numbers of rows do not compare.
        frechet: squared distance of two Gaussians with their means and covariances.
        auroc: of a linear classifier that tells them apart, on rows that it has not seen: 0.5 if it cannot.
        a_distance: 2 (1 - 2 its error): 0 if it cannot, 2 if it never fails.
    """

    rows: int
    frechet: float
    auroc: float
    a_distance: float

    def as_json(self) -> dict[str, Any]:
        """The numbers by name."""
        return asdict(self)


def distance(a_NF: Features, b_MF: Features) -> tuple[Distance, Floats]:
    """Their distance, and for each row of the second set how much the classifier takes it for one of them, in logits.

    The proxy A-distance is that of Ben-David et al., Analysis of representations for domain adaptation, 2007.
    """
    scores_N, scores_M = tell_apart(a_NF, b_MF)
    scores, second = np.concatenate([scores_N, scores_M]), np.repeat([False, True], [len(a_NF), len(b_MF)])
    error = ((scores_N > 0).mean() + (scores_M <= 0).mean()) / 2
    area, rows = area_under_roc(scores, second), min(len(a_NF), len(b_MF))
    return Distance(rows, frechet(a_NF, b_MF), area, float(2 * (1 - 2 * error))), scores_M


def frechet(a_NF: Features, b_MF: Features) -> float:
    """|mean difference|^2 + tr(A + B - 2 (A B)^(1/2)) of covariances A and B (Dowson and Landau, 1982).

    As in the Fréchet inception distance of Heusel et al., 2017, on whatever features there are. It grows as rows get
    fewer: only distances between sets of equal sizes compare. The trace of the root is the sum of the singular values
    of the product of the two centred sets, so that no root of a matrix is taken.
    """
    a, b = _centred(a_NF), _centred(b_MF)
    gap = a_NF.mean(0, dtype=np.float64) - b_MF.mean(0, dtype=np.float64)
    cross = np.linalg.svd(a @ b.T, compute_uv=False).sum()
    return float(max(gap @ gap + (a**2).sum() + (b**2).sum() - 2 * cross, 0.0))


def tell_apart(a_NF: Features, b_MF: Features) -> tuple[Floats, Floats]:
    """Logits that rows are of the second set, by logistic regressions that were fitted to four fifths of the others."""
    features = np.concatenate([a_NF, b_MF])
    second_L = np.repeat([0, 1], [len(a_NF), len(b_MF)])
    draw = np.random.default_rng(0)
    folds_L = np.concatenate([draw.permutation(len(each)) % _FOLDS for each in (a_NF, b_MF)])
    scores_L = np.zeros(len(features))
    for fold in range(_FOLDS):
        out_L, inner_L = folds_L == fold, folds_L == (fold + 1) % _FOLDS
        rest_L = ~out_L
        head = fit_chosen(features[rest_L], second_L[rest_L], inner_L[rest_L], "single-label", 2)
        outputs_L2 = head(features[out_L]).astype(np.float64)
        scores_L[out_L] = outputs_L2[:, 1] - outputs_L2[:, 0]
    return scores_L[: len(a_NF)], scores_L[len(a_NF) :]


def chance(rows: int) -> float:
    """Standard error of the area under the ROC curve of two equal sets of so many rows (Mann and Whitney, 1947)."""
    return math.sqrt((2 * rows + 1) / (12 * rows**2))


def _centred(features_NF: Features) -> Floats:
    """x with x^T x the covariance, of at most as many rows as there are features."""
    centred = (features_NF - features_NF.mean(0, dtype=np.float64)) / math.sqrt(len(features_NF) - 1)
    return np.asarray(np.linalg.qr(centred, mode="r")) if len(centred) > centred.shape[1] else centred
