"""The losses of outputs that each answer by themselves: yes or no (a sigmoid), or a number."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from raycnn.config import LossConfig
from raycnn.training.losses import BatchLoss, class_weights, log_priors, sum_of


def sigmoid_loss(config: LossConfig, counts_K2: npt.NDArray[np.int64] | None, device: torch.device) -> BatchLoss:
    """The loss that the config says, of rows that have each of K classes or not: binary cross entropy, or focal.

    The mean over the K outputs, each weighted and adjusted as a problem of its own with two classes. Its targets are
    float32[N, K] in [0, 1]; masked rows may hold anything.

    Args:
        config: see each of its fields.
        counts_K2: training rows that do not have the class, and those that do; None: as many of each.
        device: where the logits are.
    """
    tau, gamma, smoothing = config.logit_adjustment, config.focal_gamma, config.label_smoothing
    weights_K2 = shift_K = None
    if counts_K2 is not None and config.class_weights != "none":
        kind, beta = config.class_weights, config.effective_beta
        weights = np.stack([class_weights(counts, kind, beta) for counts in counts_K2])
        weights_K2 = torch.from_numpy(weights).float().to(device)
    if counts_K2 is not None and tau:
        priors_K2 = np.stack([log_priors(counts) for counts in counts_K2])
        shift_K = torch.from_numpy(tau * (priors_K2[:, 1] - priors_K2[:, 0])).float().to(device)

    def loss(logits_NK: Tensor, targets_NK: Tensor, valid_N: Tensor, factors_N: Tensor | None = None) -> Tensor:
        logits_NK = torch.where(valid_N[:, None], logits_NK.float(), 0.0)
        logits_NK = logits_NK if shift_K is None else logits_NK + shift_K
        targets_NK = torch.where(valid_N[:, None], targets_NK, 0.0) * (1 - smoothing) + smoothing / 2
        log_yes_NK, log_no_NK = F.logsigmoid(logits_NK), F.logsigmoid(-logits_NK)
        yes_NK, no_NK = targets_NK * log_yes_NK, (1 - targets_NK) * log_no_NK
        if config.name == "focal":  # (Lin et al., 2017); without their alpha, which class_weights is
            yes_NK, no_NK = yes_NK * (gamma * log_no_NK).exp(), no_NK * (gamma * log_yes_NK).exp()
        if weights_K2 is not None:
            yes_NK, no_NK = yes_NK * weights_K2[:, 1], no_NK * weights_K2[:, 0]
        return sum_of(-(yes_NK + no_NK).mean(1), valid_N, factors_N)

    return loss


def number_loss(config: LossConfig, counts: None, device: torch.device) -> BatchLoss:
    """The loss that the config says, of one number a row: mse, l1 or huber.

    Its outputs are float32[N, 1], its targets float[N], both in standard deviations from the mean.

    Args:
        config: see each of its fields.
        counts: there are none.
        device: where the outputs are.
    """
    functions: dict[str, Callable[..., Tensor]] = {
        "l1": F.l1_loss,
        "huber": partial(F.huber_loss, delta=config.huber_delta),
    }
    function = functions.get(config.name, F.mse_loss)

    def loss(outputs_N1: Tensor, targets_N: Tensor, valid_N: Tensor, factors_N: Tensor | None = None) -> Tensor:
        outputs_N = torch.where(valid_N, outputs_N1[:, 0].float(), 0.0)
        targets_N = torch.where(valid_N, targets_N, 0.0).float()
        return sum_of(function(outputs_N, targets_N, reduction="none"), valid_N, factors_N)

    return loss
