"""Prior correction: outputs of a network that learned one mix of classes, for images with another.

A network's probabilities hold for the shares that classes had in training, as drawn and weighted. For other shares,
log(new / old) is added to the logits (Saerens, Latinne and Decaestecker, 2002; Menon et al., 2021).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from raycnn.config import Config, load_config
from raycnn.config.base import Prior
from raycnn.data.folds import read_rows
from raycnn.data.plan import draws_per_epoch
from raycnn.errors import ConfigError
from raycnn.storage import Store
from raycnn.training.calibration import Calibration
from raycnn.training.losses import class_weights, log_priors
from raycnn.training.metrics import Logits
from raycnn.training.metrics_of_outputs import two_logits
from raycnn.training.problems import Problem
from raycnn.training.run import RunFacts

Floats = npt.NDArray[np.float64]

_PASSES: Final = 10_000
_ENOUGH: Final = 1e-10


def learned_log_priors(config: Config, counts_K: npt.NDArray[np.int64]) -> Floats:
    """log of the share that each class had in training, float64[K].

    By data.resample, loss.class_weights and loss.logit_adjustment, which takes its part out of the logits again.

    Args:
        config: of the run.
        counts_K: training rows of each class.
    """
    drawn_K, loss = draws_per_epoch(counts_K, config.data.resample), config.loss
    weights_K = class_weights(drawn_K, loss.class_weights, loss.effective_beta)
    logs_K = log_priors(drawn_K) * (1 - loss.logit_adjustment) + np.log(np.where(weights_K > 0, weights_K, 1.0))
    return np.asarray(logs_K - np.logaddexp.reduce(logs_K))


def prior_shift(config: Config, counts_K: npt.NDArray[np.int64], prior: Literal["rows", "uniform"]) -> Floats:
    """What is to be added to the logits, float64[K].

    Args:
        config, counts_K: see `learned_log_priors`.
        prior: rows: the shares of the training rows as they lie; uniform: equal shares.
    """
    wanted_K = log_priors(counts_K) if prior == "rows" else np.full(len(counts_K), -np.log(len(counts_K)))
    return np.asarray(wanted_K - learned_log_priors(config, counts_K))


def corrected(
    config: Config, counts_K: npt.NDArray[np.int64], logits_NK: npt.NDArray[np.float32], prior: Prior
) -> npt.NDArray[np.float32]:
    """The logits for other shares of the classes."""
    if prior == "trained":
        shift_K = np.zeros(len(counts_K))
    elif prior == "estimated":
        shift_K = estimated_shift(logits_NK, learned_log_priors(config, counts_K))
    else:
        shift_K = prior_shift(config, counts_K, prior)
    return (logits_NK + shift_K).astype(np.float32)


def correction(
    storage: Store, run: RunFacts, problem: Problem, prior: Prior, calibration: Calibration
) -> Callable[[Logits], Logits]:
    """What makes a run's outputs those for other shares of the classes; for `trained` what leaves them.

    Args:
        storage: the root of run.storage.
        run: whose settings and training rows count.
        problem: what its outputs are.
        prior: see evaluate.prior.
        calibration: of the outputs, whose probabilities are those that are corrected.

    Raises:
        ConfigError: the images do not have one class each.
    """
    if prior == "trained":
        return lambda outputs_NK: outputs_NK
    if problem.task not in ("single-label", "binary"):
        what = f"{problem.task} targets have no shares that add up to 1"
        raise ConfigError(what, where="evaluate.prior, predict.prior", fix="leave it out")
    config = load_config(run.config)
    rows = read_rows(storage, run.index, run.identity, ("label", "split")).rows("train")
    counts_K = np.bincount(rows["label"].to_numpy(), minlength=len(run.classes))

    def correct(outputs_NK: Logits) -> Logits:
        if problem.task == "single-label":
            return corrected(config, counts_K, outputs_NK, prior)
        both_N2 = corrected(config, counts_K, two_logits(outputs_NK), prior)
        return both_N2[:, 1:] - both_N2[:, :1]

    return calibration.around(correct)


def estimated_shift(logits_NK: npt.NDArray[np.float32], learned_log_K: Floats) -> Floats:
    """The same for shares that are estimated from the images themselves, without labels, by expectation maximisation.

    Args:
        logits_NK: of all images.
        learned_log_K: see `learned_log_priors`.
    """
    likelihoods_NK = logits_NK.astype(np.float64) - learned_log_K
    likelihoods_NK = np.exp(likelihoods_NK - likelihoods_NK.max(1, keepdims=True))
    shares_K = np.exp(learned_log_K)
    for _ in range(_PASSES):
        joint_NK = likelihoods_NK * shares_K
        found_K = (joint_NK / joint_NK.sum(1, keepdims=True)).mean(0)
        change, shares_K = np.abs(found_K - shares_K).max(), found_K
        if change < _ENOUGH:
            break
    return np.asarray(np.log(np.maximum(shares_K, 1e-12)) - learned_log_K)
