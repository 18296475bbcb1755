"""The gradient of a step: in how many passes it is computed, in which order it is added up, over whom."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from raycnn.data.keyed import derive_seed
from raycnn.training.device import autocast, memory_format, seed
from raycnn.training.exact import add_ranks, in_buckets, shards, tree_sum
from raycnn.training.losses import Targets, of_mixed
from raycnn.training.passes import keep

if TYPE_CHECKING:
    from raycnn.training.learner import Learner


class Gradients:
    """Of what trains at one depth; they are left in its parameters.

    Args:
        learner: whose loss, precision and rows a pass they are.
        trains: what has parameters.
        network: the same as a function, compiled maybe.
        ddp: its DDP, which adds up the ranks' gradients in each pass; without one they are added up here.
    """

    def __init__(
        self, learner: Learner, trains: nn.Module, network: Callable[[Tensor], Tensor],
        ddp: DistributedDataParallel | None,
    ) -> None:  # fmt: skip
        self._learner, self._train = learner, learner.config.train
        self._trains, self.network, self._ddp = trains, network, ddp

    def backward(
        self, inputs: Tensor, labels_N: Targets, valid_N: Tensor, global_count: float, step: int
    ) -> Tensor:  # all ranks
        """See Learner.backward; the inputs are those of what trains."""
        train, ranks, micro_batch = self._train, self._learner.ranks, self._learner.micro_batch
        work = partial(self._shards if train.exact else self._batch, inputs, labels_N, valid_N, global_count, step)
        if micro_batch.automatic:
            rows = train.global_batch // train.virtual_shards if train.exact else len(inputs)
            losses = micro_batch.fit(work, rows, self._undoing(), ranks, step)
        else:
            losses = work()
        if train.exact:
            add_ranks(self._now(), ranks)
        elif ranks.world > 1 and self._ddp is None:
            in_buckets(self._now(), ranks.add)
        return torch.stack(losses)

    def _batch(
        self, inputs: Tensor, labels_N: Targets, valid_N: Tensor, global_count: float, step: int
    ) -> list[Tensor]:
        # DDP averages over ranks, which hold different numbers of valid rows: weight by the global count instead
        ranks = self._learner.ranks
        weight = (ranks.world if self._ddp else 1) / max(global_count, 1.0)
        return self._passes(inputs, labels_N, valid_N, weight, f"step {step} rank {ranks.rank}")

    def _shards(
        self, inputs: Tensor, labels_N: Targets, valid_N: Tensor, global_count: float, step: int
    ) -> list[Tensor]:
        rows = self._train.global_batch // self._train.virtual_shards
        first = self._learner.ranks.rank * (len(inputs) // rows)
        losses: list[Tensor] = []
        gradients: dict[nn.Parameter, Tensor] = {}

        def branches() -> Iterator[list[Tensor]]:
            for shard, (place, part) in enumerate(shards(inputs, rows), first):
                weight, name = 1 / max(global_count, 1.0), f"step {step} shard {shard}"
                losses.extend(self._passes(part, labels_N[place], valid_N[place], weight, name))
                gradients.update({p: p.grad for p in self._trains.parameters() if p.grad is not None})
                self._trains.zero_grad(set_to_none=True)
                yield list(gradients.values())

        total = tree_sum(branches())
        for parameter, gradient in zip(gradients, total, strict=True):
            parameter.grad = gradient
        return losses

    def _passes(self, inputs: Tensor, labels_N: Targets, valid_N: Tensor, weight: float, name: str) -> list[Tensor]:
        """The sums of the losses of each pass over the rows; `name` keys what is drawn at random."""
        places = self._learner.micro_batch.pieces(len(inputs))
        if len(places) == 1:
            self._seed(name)
            return [self._pass(inputs, labels_N, valid_N, weight)]
        losses = []
        for number, place in enumerate(places):
            self._seed(f"{name} pass {number}")
            part = inputs[place].clone(memory_format=memory_format(inputs))
            more = number < len(places) - 1  # DDP's ranks swap gradients in the last one
            with self._ddp.no_sync() if self._ddp and more else nullcontext():
                losses.append(self._pass(part, labels_N[place], valid_N[place], weight))
        return losses

    def _pass(self, inputs: Tensor, labels_N: Targets, valid_N: Tensor, weight: float) -> Tensor:
        """The sum of the losses, when its gradient times `weight` has been added to the parameters'."""
        learner = self._learner
        with autocast(learner.device, learner.precision):
            logits_NK = self.network(inputs)
        loss_sum = of_mixed(learner.loss, logits_NK.float(), labels_N, valid_N)
        learner.scaler.scale(loss_sum * weight).backward()  # type: ignore[no-untyped-call]
        return loss_sum.detach()

    def _seed(self, name: str) -> None:
        seed(derive_seed(self._train.seed, name), self._learner.device)

    def _now(self) -> list[Tensor]:
        return [p.grad for p in self._trains.parameters() if p.grad is not None]

    def _undoing(self) -> Callable[[], None]:
        """Takes back what passes do: gradients, and statistics that move."""
        moving = self._learner.config.model.batchnorm == "local"
        back = keep(list(self._trains.buffers()) if moving else [])

        def undo() -> None:
            back()
            self._trains.zero_grad(set_to_none=True)

        return undo
