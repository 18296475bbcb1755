"""The loss of a student: a share of it is how far its outputs are from a teacher's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Final

import torch.nn.functional as F
from torch import Tensor

from raycnn.config import DistillConfig
from raycnn.training.losses import BatchLoss, Taught, masked, of_mixed, sum_of


def distilled(loss: BatchLoss, config: DistillConfig, task: str) -> BatchLoss:
    """(1 - weight) times the loss of the labels, and weight times the difference to the teacher: Hinton et al., 2015.

    Args:
        loss: of the labels.
        config: weight and temperature.
        task: of the problem.

    Returns:
        A loss whose targets are `Taught`; where images are mixed the teacher has seen the mixed ones.
    """
    difference = partial(_DIFFERENCES[task], temperature=config.temperature)

    def both(logits_NK: Tensor, targets: Taught, valid_N: Tensor) -> Tensor:
        losses_N = difference(masked(logits_NK, valid_N), masked(targets.teacher_NK, valid_N))
        taught = sum_of(losses_N, valid_N, None)
        if config.weight == 1:
            return taught
        return (1 - config.weight) * of_mixed(loss, logits_NK, targets.own, valid_N) + config.weight * taught

    return both


def of_classes(logits_NK: Tensor, teacher_NK: Tensor, temperature: float) -> Tensor:
    """Kullback and Leibler's divergence of the softened distributions from the teacher's, times T^2, float[N].

    The gradient of softened logits is smaller by T^2, hence the factor.
    """
    log_p_NK, log_q_NK = (logits_NK / temperature).log_softmax(1), (teacher_NK / temperature).log_softmax(1)
    return temperature**2 * F.kl_div(log_p_NK, log_q_NK, reduction="none", log_target=True).sum(1)


def of_yes_and_no(logits_NK: Tensor, teacher_NK: Tensor, temperature: float) -> Tensor:
    """The same of each output by itself, yes against no; the mean over outputs."""
    softened, taught = logits_NK / temperature, teacher_NK / temperature
    yes_NK = taught.sigmoid() * (F.logsigmoid(taught) - F.logsigmoid(softened))
    no_NK = (-taught).sigmoid() * (F.logsigmoid(-taught) - F.logsigmoid(-softened))
    return temperature**2 * (yes_NK + no_NK).mean(1)


def of_numbers(outputs_N1: Tensor, teacher_N1: Tensor, temperature: float) -> Tensor:
    """Squares of the difference, whatever the temperature."""
    return (outputs_N1 - teacher_N1)[:, 0].square()


_DIFFERENCES: Final[Mapping[str, Callable[..., Tensor]]] = {
    "single-label": of_classes,
    "binary": of_yes_and_no,
    "multi-label": of_yes_and_no,
    "regression": of_numbers,
}
