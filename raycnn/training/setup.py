"""What a config, a network's facts and an index mean to a process that trains."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Final

import pyarrow as pa
import torch
from torch import nn

from raycnn.config import Config, Depth, Given
from raycnn.config.given import PYTHON
from raycnn.data.dataset import batches_per_block
from raycnn.data.manifest import Index
from raycnn.data.plan import draws_per_epoch, plan_of
from raycnn.data.reader import COLUMNS, ImageReader
from raycnn.models.depthwise import speed_up_depthwise
from raycnn.models.stages import Stages, find
from raycnn.models.zoo import Network, build, preprocessing
from raycnn.training.augmenting import DeviceViews
from raycnn.training.compiling import BACKEND
from raycnn.training.device import DeviceFacts, Normalize, choose_compiled, choose_precision
from raycnn.training.distill import distilled
from raycnn.training.feed import Task
from raycnn.training.given_loss import given_loss, try_out
from raycnn.training.learner import Learner
from raycnn.training.losses import BatchLoss, one_label_loss
from raycnn.training.losses_of_outputs import number_loss, sigmoid_loss
from raycnn.training.phases import deepest, unfreeze_of
from raycnn.training.prefix import TEACHER, Prefix
from raycnn.training.problems import ONE_LABEL, Problem
from raycnn.training.ranks import Ranks
from raycnn.training.state import NetworkFacts

INDEX_COLUMNS = (*COLUMNS, "target", "split")
"""What of the manifest training needs."""


_LOSSES: Final[Mapping[str, Callable[..., BatchLoss]]] = {
    "single-label": one_label_loss,
    "binary": sigmoid_loss,
    "multi-label": sigmoid_loss,
    "regression": number_loss,
}


def facts_of(config: Config, classes: tuple[str, ...], problem: Problem = ONE_LABEL) -> NetworkFacts:
    """What the config's network is, before it is built."""
    data, view = config.data, preprocessing(config.model.name, config.data.image_size)
    view = replace(view, mean=data.mean or view.mean, std=data.std or view.std)
    return NetworkFacts(config.model.name, classes, view, config.train.chunk, config.model.head, problem)


def network_of(facts: NetworkFacts, given: Given, seed: int = 0) -> Network:
    """The network of these facts, with random weights, or with its own if it is a given one.

    Raises:
        ConfigError, CheckpointError: see raycnn.models.zoo.build.
    """
    size = facts.preprocessing.image_size
    return build(facts.name, facts.num_outputs, seed=seed, image_size=size, head=facts.head, given=given)


def call_of(facts: NetworkFacts, given: Given) -> str:
    """What tells the code of a given network, which may be another each time, from that of other calls."""
    return given.call if facts.name.startswith(PYTHON) else ""


class Body:
    """A network on its device, cut into stages, and the prefix that every suffix of it shares.

    Attributes:
        module: the whole network; its weights are to be loaded.
        facts: what it is.
    """

    def __init__(self, config: Config, facts: NetworkFacts, device: torch.device) -> None:
        network = network_of(facts, config.given)
        self.device = device
        self._call = call_of(facts, config.given)
        self.stages: Stages = find(network)
        self.module: nn.Module = network.module.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        if device.type == "cpu":
            speed_up_depthwise(self.module)
        normalize = Normalize(facts.preprocessing).to(device)
        precision = choose_precision(config.train.precision, device)
        self.facts, self._precision = facts, precision
        compiled = choose_compiled(config.train.compile, DeviceFacts.of(device)) != "none"
        self.prefix = Prefix(self.stages, normalize, config.train.chunk, precision, compiled=compiled)

    def identities(self, depths: Iterable[Depth]) -> dict[Depth, str]:
        """`identity` of each depth, and of the teacher."""
        return {depth: self.identity(depth) for depth in (*depths, *self.prefix.always)}

    def identity(self, depth: Depth) -> str:
        """Hex sha256 of what the input of the suffix at `depth` depends on beside the image: equal bits, equal digest.

        The weights before the cut, the network, the shape of a pass, precision, kind of device, torch's version, and
        whether the prefix is compiled; of a given network also the call. Of the teacher its own.
        """
        kind = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else self.device.type
        digest = hashlib.sha256(repr((self.facts, self._precision, kind, torch.__version__)).encode())
        digest.update(f"{torch.get_num_threads()} {torch.backends.cpu.get_cpu_capability()}".encode())
        digest.update(self._call.encode())
        if self.prefix.compiled:
            digest.update(f"compiled by {BACKEND}".encode())
        if depth == TEACHER:
            assert self.prefix.teacher is not None
            digest.update(self.prefix.teacher.digest.encode())
            return digest.hexdigest()
        own = {name for name, _ in self.stages.suffix(depth).named_parameters()}
        for name, tensor in self.module.state_dict().items():
            if name not in own:
                digest.update(name.encode())
                digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        return digest.hexdigest()

    def learner(self, config: Config, ranks: Ranks, loss: BatchLoss | None = None) -> Learner:
        """Trains this very network."""
        return Learner(self.module, self.stages, config, self.device, ranks, loss)

    def copied_learner(self, config: Config, ranks: Ranks, loss: BatchLoss | None = None) -> Learner:
        """Trains a copy of the suffix that the config unfreezes; what comes before stays shared."""
        network, stages = self.stages.copy(deepest(unfreeze_of(config.model, self.stages), self.stages))
        return Learner(network.module, stages, config, self.device, ranks, loss)


def loss_of(config: Config, facts: NetworkFacts, rows: pa.Table | None, device: torch.device) -> BatchLoss:
    """The loss that the config says, for these training rows.

    Without them it is as if all classes had as many rows, and there were no teacher.
    """
    problem, distill = facts.problem, config.loss.distill
    counts = None if rows is None else problem.counts(rows, facts.classes)
    if counts is not None and config.data.resample != "none":
        counts = draws_per_epoch(counts.ravel(), config.data.resample).reshape(counts.shape)
    if config.loss.name.startswith(PYTHON):
        loss = given_loss(config.loss.name, config.given, device)
        if rows is not None:
            try_out(loss, config.loss.name, problem, rows, facts.num_outputs, device)
    else:
        loss = _LOSSES[problem.task](config.loss, counts, device)
    return loss if rows is None or distill.teacher == "none" else distilled(loss, distill, problem.task)


def task_of(config: Config, facts: NetworkFacts, index: Index, task_cpus: float, world: int) -> Task:
    """What `config` trains and validates on, read for a network of these facts."""
    rows = index.rows("train")
    plan, augment = plan_of(config, rows), config.augment
    late = DeviceViews(augment, plan.seed, facts.preprocessing.image_size, config.apart) if augment.on_device else None
    view = {"augment": augment.decoded, "seed": plan.seed}
    return Task(
        plan=plan,
        table=rows,
        reader=ImageReader.of(config.data, index.source, facts.preprocessing, **view),
        validation=index.rows("val"),
        scanner=ImageReader.of(config.data, index.source, facts.preprocessing),
        chunk=config.train.chunk,
        task_cpus=task_cpus,
        steps_per_block=batches_per_block(plan.global_batch // world, config.data.block_steps),
        device_views=late,
        problem=facts.problem,
    )
