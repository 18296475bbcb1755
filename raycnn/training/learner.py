"""One rank's suffix of a network with its optimizer: everything that a checkpoint restores."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from raycnn.config import Config, Depth
from raycnn.errors import CheckpointError
from raycnn.models.batchnorm import set_mode
from raycnn.models.stages import Split, Stages
from raycnn.models.weights import load_state
from raycnn.training.compiling import compiled
from raycnn.training.device import DeviceFacts, autocast, choose_compiled, choose_precision, in_chunks
from raycnn.training.ema import Ema
from raycnn.training.gradients import Gradients
from raycnn.training.losses import BatchLoss, Targets, one_label_loss
from raycnn.training.optim import build_optimizer, load_optimizer, set_rates, stage_scales
from raycnn.training.passes import MicroBatch
from raycnn.training.penalty import add_gradient, penalty
from raycnn.training.phases import deepest, unfreeze_of
from raycnn.training.ranks import Ranks

_ARGUMENTS = inspect.signature(DistributedDataParallel).parameters
_SYNC_BUFFERS = "forward_sync_buffers" if "forward_sync_buffers" in _ARGUMENTS else "broadcast_buffers"


class Learner:
    """What one rank trains of a network: the suffix at the deepest depth that the config names.

    Its inputs are what a `Prefix` gives for the depth `base`. Phases may freeze some stages of it for a while: those
    are then in eval mode and outside of DDP, like the prefix. DDP wraps what trains alone and is made anew when the
    depth changes, so ranks cannot diverge when layers unfreeze. The optimizer holds every parameter that ever trains;
    those of a frozen stage have no gradient and are left alone.

    Args:
        module: the network, on the device in channels_last; the part before the suffix may be shared.
        stages: its stages.
        config: the run's.
        device: where to compute.
        ranks: that train together.
        loss: of a batch; None: that of the config for one label a row, as if all classes had as many rows.

    Raises:
        ConfigError: a depth that the network does not have.
    """

    def __init__(
        self,
        module: nn.Module,
        stages: Stages,
        config: Config,
        device: torch.device,
        ranks: Ranks,
        loss: BatchLoss | None = None,
    ) -> None:
        self.module, self.stages, self.config, self.device, self.ranks = module, stages, config, device, ranks
        self.unfreeze = unfreeze_of(config.model, stages)
        self.base = deepest(self.unfreeze, stages)
        self._whole = stages.suffix(self.base)
        self.loss = loss or one_label_loss(config.loss, None, device)
        self.precision = choose_precision(config.train.precision, device)
        self.compiled = choose_compiled(config.train.compile, DeviceFacts.of(device))
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.precision is torch.float16)
        scales = stage_scales(stages, config.optim.stage_decay)
        self.optimizer = build_optimizer(self._whole.named_parameters(), config.optim, scales)
        self.ema = None if config.train.ema is None else Ema(self._whole, config.train.ema)
        self.micro_batch = MicroBatch(config.train.micro_batch)
        self.depth: Depth | None = None
        self._split: Split
        self._frozen: Callable[[Tensor], Tensor] | None = None
        self.gradients: Gradients

    def enter(self, depth: Depth) -> None:  # all ranks
        """Train at `depth` from now on."""
        if depth == self.depth:
            return
        self.depth = depth
        self._split = Split(self.stages.between(self.base, depth), self.stages.suffix(depth))
        self._set_train_mode()
        self.optimizer.zero_grad(set_to_none=True)
        self._frozen, trains = self._split.prefix, self._split.suffix
        if self._split.prefix is not None and self.compiled != "none":
            self._frozen = compiled(self._split.prefix)
        ddp = None
        if self.ranks.world > 1 and not self.config.train.exact and not self.micro_batch.automatic:
            # With three or more CPU ranks the order of sums follows DDP's buckets, which it rebuilds after its first
            # step, so a resumed run would differ in the last bits; looking for unused parameters keeps them.
            # Buffers need no syncing: BatchNorm trains on its batch's statistics, and those that are kept are rank 0's.
            arguments: dict[str, Any] = {
                "find_unused_parameters": self.ranks.world > 2 and self.device.type == "cpu",
                "gradient_as_bucket_view": True,
                _SYNC_BUFFERS: False,
            }
            ddp = DistributedDataParallel(trains, **arguments)
        # around DDP: compiled code is cut where its buckets end, so ranks swap gradients while others are computed
        network = compiled(ddp or trains) if self.compiled == "all" else ddp or trains
        self.gradients = Gradients(self, trains, network, ddp)

    def backward(self, inputs: Tensor, labels_N: Targets, valid_N: Tensor, global_count: float, step: int) -> Tensor:
        """Gradients of the mean loss over the global batch.

        Args:
            inputs: of the suffix at `base`, one row per image.
            labels_N: targets, as the loss takes them: int64 classes, or float; or two of them.
            valid_N: bool; rows that count.
            global_count: rows that count over all ranks.
            step: the global step; what is drawn at random (dropout) is keyed by it.

        Returns:
            Sums of losses, one for this rank or for each of its virtual shards, float32 on the device.
        """
        if self._frozen is not None:
            with torch.no_grad(), autocast(self.device, self.precision):
                inputs = in_chunks(self._frozen, inputs, self.config.train.chunk)
        return self.gradients.backward(inputs, labels_N, valid_N, global_count, step)

    def step(self, lr: float, momentum: float | None = None) -> float:
        """One optimizer step, unless a gradient is not finite.

        Args:
            lr: learning rate, of the head where stages have their own.
            momentum: or first beta, if it is not the same all the time.

        Returns:
            The global norm of the gradient before clipping; equal on all ranks, NaN or Inf when the step was left out.
        """
        set_rates(self.optimizer, lr, momentum)
        self.scaler.unscale_(self.optimizer)
        add_gradient(self._trained(), self.config.loss)
        gradients = [p.grad for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        value = float(norm)
        if self.config.optim.clip_norm is not None and value > self.config.optim.clip_norm:
            torch._foreach_mul_(gradients, self.config.optim.clip_norm / value)
        if self.scaler.is_enabled() or _finite(value):
            self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return value

    def average(self, step: int) -> None:
        """Take the weights after a step into their running mean, if there is one."""
        if self.ema:
            self.ema.update(step)

    def penalty(self) -> float:
        """The value of the penalties on the weights, between backward and step."""
        return penalty(self._trained(), self.config.loss)

    def _trained(self) -> Iterator[Tensor]:
        return (p for group in self.optimizer.param_groups for p in group["params"])

    def buffers(self) -> Iterator[Tensor]:
        """What it holds of statistics."""
        yield from self.module.buffers()
        yield from self.ema.buffers() if self.ema else ()

    def skips_overflows(self) -> bool:
        """Whether a gradient that is not finite is a normal event (fp16 with loss scaling)."""
        return self.scaler.is_enabled()

    @contextmanager
    def evaluating(self) -> Iterator[Callable[[Tensor], Tensor]]:
        """Inside, a function from inputs of the suffix at `base` to float32 logits_NK, in eval mode."""
        self._whole.eval()
        network = self.ema or self._whole

        @torch.inference_mode()
        def logits(inputs: Tensor) -> Tensor:
            with autocast(self.device, self.precision):
                return in_chunks(network, inputs, self.config.train.chunk).float()

        try:
            yield logits
        finally:
            self._set_train_mode()

    def snapshot(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Copies on the CPU of the network's and the optimizer's state, safe while training goes on."""
        weights = {name: _copy(tensor) for name, tensor in self.module.state_dict().items()}
        optimizer = _copy({"optimizer": self.optimizer.state_dict(), "scaler": self.scaler.state_dict()})
        if self.ema:  # the weights are what the run stands for; those that it goes on from are the optimizer's business
            optimizer["raw"] = {name: weights[name] for name in self.ema.weights}
            weights |= _copy(self.ema.weights)
        return weights, optimizer

    def restore(self, weights: Mapping[str, Tensor], optimizer: dict[str, Any]) -> None:
        """Continue from a snapshot; an empty optimizer state starts afresh. CheckpointError for another network's."""
        load_state(self.module, weights, where="weights.safetensors")
        if self.ema and not optimizer:
            self.ema.restore(None)
        if optimizer:
            try:
                if self.ema:
                    self.ema.restore(optimizer["raw"])
                load_optimizer(self.optimizer, optimizer["optimizer"], self.config.optim)
                self.scaler.load_state_dict(optimizer["scaler"])
            except (LookupError, ValueError, TypeError, AttributeError, RuntimeError) as error:
                what = f"not the state of this optimizer: {type(error).__name__}: {error}"
                raise CheckpointError(what, where="optimizer.pt", fix="use another step") from None

    def _set_train_mode(self) -> None:
        set_mode(self._split, self.config.model.batchnorm)


def _finite(value: float) -> bool:
    return value - value == 0


def _copy(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: _copy(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_copy(item) for item in value)
    return value
