"""What a run can be refused for before anything of it is written down or trained."""

from __future__ import annotations

import torch

from raycnn.config import Config
from raycnn.config.given import PYTHON
from raycnn.data.manifest import Index
from raycnn.training.run import RunFacts
from raycnn.training.setup import loss_of, network_of
from raycnn.training.state import NetworkFacts
from raycnn.training.teaching import check_teacher


def refuse_unusable(config: Config, facts: NetworkFacts, index: Index, told: RunFacts | None = None) -> None:
    """Try out a network and a loss that are given, and look at the teacher, if there are any.

    Args:
        told: facts of a run that has begun, which pin its teacher.

    Raises:
        ConfigError: what is given cannot be used.
        CheckpointError: the teacher is not there, or teaches something else.
    """
    if facts.name.startswith(PYTHON):
        network_of(facts, config.given)
    if config.loss.name.startswith(PYTHON):
        loss_of(config, facts, index.rows("train"), torch.device("cpu"))
    check_teacher(config, facts, told)
