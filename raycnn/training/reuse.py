"""Feeds that compute what the frozen prefix says of an image once per node, then take it from the cache."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import repeat
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from raycnn.config import CacheConfig, Depth
from raycnn.data.dataset import Batch, Order, ScanOrder, TrainOrder, batches_per_block, stream
from raycnn.data.here import are_few
from raycnn.data.reader import ImageReader
from raycnn.storage import Store
from raycnn.storage.cache import Cache
from raycnn.training.clock import Clock
from raycnn.training.device import to_device
from raycnn.training.feed import Feed, Task
from raycnn.training.kept import PIXELS, Array, Choice, Int64s, Kept, Part, from_rows, to_rows
from raycnn.training.prefix import Prefix
from raycnn.training.ranks import Ranks

_PARTS: Final = 8  # of each pack


@dataclass(frozen=True)
class Reuse:
    """What of an image is kept, and where.

    Args:
        cache: of this node.
        start: what tells this start of the search from others.
        choices: for each depth that trials train at; one without a choice is shared.
        turn: which of the packs of this node this is.
        turns: packs that divide a segment among them.
    """

    cache: Cache
    start: str
    choices: Mapping[Depth, Choice]
    turn: int = 0
    turns: int = 1


def cache_of(settings: CacheConfig, storage: Store) -> Cache:
    """The cache of this node, with the overflow below run.storage if that is wanted."""
    return replace(bytes_cache(settings), overflow=storage.child("cache") if settings.upload else None)


def bytes_cache(settings: CacheConfig) -> Cache:
    """The cache of this node without an overflow: fetched bytes are in a store already."""
    return Cache(Path(settings.folder or tempfile.gettempdir()), settings.max_bytes)


@dataclass(frozen=True)
class KeptBatch(Batch):
    """A batch from the cache, with the inputs of the suffixes by depth; it has images where pixels are kept."""

    taps: dict[Depth, Tensor] = field(default_factory=dict)


class ReusingFeed(Feed):
    """A feed whose segments are computed once per node, by all packs that need them together.

    Args:
        identity: what the prefix's outputs depend on beside the image and its view, for a depth.
        reuse: what is kept.
    """

    def __init__(
        self, task: Task, prefix: Prefix, device: torch.device, ranks: Ranks, total: int,
        identity: Mapping[Depth, str], reuse: Reuse, clock: Clock | None = None,
    ) -> None:  # fmt: skip
        super().__init__(task, prefix, device, ranks, total, clock)
        self._identity, self._reuse = identity, reuse
        self._dtypes: dict[Depth, torch.dtype] = {}
        blanks = self._blanks()
        self._train = self._tables(blanks, task.reader, train=True) if blanks else None
        self._val = self._tables(blanks, task.scanner, train=False) if blanks else None

    def prepare(self, start: int, stop: int, leaving: Callable[[], bool] = lambda: False) -> None:
        """Have what is to be kept for the steps [start, stop) and the validation rows in the cache, unless leaving."""
        if self._train is None or self._val is None:
            return
        task, world = self.task, self._world
        epochs = set(task.plan.share(start, self._rank, world, stop - start)[1].tolist())
        self._train.close(epochs)
        if self._train.usable(epochs):
            train = TrainOrder(task.plan, self._rank, world, start, stop, task.steps_per_block)
            if here := are_few(task.table, train):
                train = replace(train, steps_per_block=1)
            for part, parts in self._parts(f"train {start} {stop}", stop - start, here):
                order = replace(train, turn=part, turns=parts)
                steps = [step for number in range(order.num_blocks) for step in order.steps(number)]
                self._fill(self._train, task.reader, task.table, order, steps, leaving, here)
        if self._val.usable([0]):
            scan = self._scan(self._rank, world)
            here = are_few(task.validation, scan)
            for part, parts in self._parts("val", -(-len(task.validation) // (scan.chunk * world)), here):
                scan = self._scan(self._rank + world * part, world * parts)
                self._fill(self._val, task.scanner, task.validation, scan, repeat(None), leaving, here)

    def batch(self, step: int) -> Batch:
        """From the cache if all of it is there, else from the stream."""
        share = self.task.plan.share(step, self._rank, self._world)
        return self._kept(self._train, *share, step) or super().batch(step)

    def validation(self) -> Iterator[Batch]:
        """As Feed.validation, from the cache if all of it is there."""
        parts = list(parts_of(self._scan(self._rank, self._world)))
        if not all(self._kept(self._val, *part) for part in parts):  # a row may be there and damaged
            yield from super().validation()
            return
        for part in parts:
            batch = self._kept(self._val, *part)
            assert batch is not None, "what was intact a moment ago has been written over"
            yield batch

    def inputs(self, batch: Batch, depths: Collection[Depth]) -> dict[Depth, Tensor]:
        """What the batch brought along; the rest through the prefix."""
        taps = batch.taps if isinstance(batch, KeptBatch) else {}
        missing = [depth for depth in depths if depth not in taps]
        return {**taps, **(super().inputs(batch, missing) if missing else {})}

    def close(self) -> None:
        """Let go of the cache."""
        for kept in filter(None, (self._train, self._val)):
            kept.close()
        self._train = self._val = None
        super().close()

    def _blanks(self) -> dict[str, Array]:
        """What a black image gives, for all depths of the search: packs with other depths need the same images."""
        choices = self._reuse.choices
        if "share" in choices.values():  # a pass for one depth is a pass for all
            return {}
        size = self.task.reader.preprocessing.image_size
        black = to_device(np.zeros((self.task.chunk, size, size, 3), np.uint8), self.device)
        counted = self.prefix.rows.copy()
        kept = [depth for depth, choice in choices.items() if choice == "activations"]
        taps = self.prefix.taps(black, [*kept, *(self.prefix.always if kept else ())])
        self.prefix.rows = counted
        self._dtypes = {depth: tap.dtype for depth, tap in taps.items()}
        blanks = {str(depth): to_rows(tap)[0] for depth, tap in taps.items()}
        if "pixels" in choices.values():
            blanks[PIXELS] = np.zeros((size, size, 3), np.uint8)
        return blanks

    def _tables(self, blanks: dict[str, Array], reader: ImageReader, *, train: bool) -> Kept:
        late = self.task.device_views if train else None
        pixels = _digest(replace(reader, source="", fetch_threads=0, keeper=None))
        # what an image is mixed with is a matter of its place in the plan
        view = _digest(pixels, late, self.task.plan if late.augment.mixes else None) if late else pixels
        names = {str(depth): f"{identity}/{view}" for depth, identity in self._identity.items()} | {PIXELS: pixels}
        table = self.task.table if train else self.task.validation
        random = train and (reader.augment is not None or (late is not None and bool(self._dtypes)))
        return Kept(self._reuse.cache, self._reuse.start, table, names, blanks, random=random)

    def _scan(self, rank: int, world: int) -> ScanOrder:
        chunk = self.task.chunk
        return ScanOrder(len(self.task.validation), chunk, batches_per_block(chunk), rank, world)

    def _fill(
        self, kept: Kept, reader: ImageReader, table: pa.Table, order: Order, steps: Iterable[int | None],
        leaving: Callable[[], bool], here: bool,
    ) -> None:  # fmt: skip
        parts = list(parts_of(order))
        if kept.there(parts):
            return
        batches = self._transfer.ahead(stream(reader, table, order, task_cpus=self.task.task_cpus, here=here))
        for part, batch, step in zip(parts, batches, steps, strict=False):
            if leaving():
                return
            taps = super().inputs(replace(batch, step=step), self._dtypes) if self._dtypes else {}
            self._put(kept, part, batch, taps)

    def _put(self, kept: Kept, part: Part, batch: Batch, taps: Mapping[Depth, Tensor]) -> None:
        values = {str(depth): to_rows(taps[depth]) for depth in self._dtypes}
        if PIXELS in kept.names:
            values[PIXELS] = batch.images_NHWC
        kept.put(batch, *part, values)

    def _kept(self, kept: Kept | None, ids: Int64s, epochs: Int64s, step: int | None = None) -> KeptBatch | None:
        found = None if kept is None else kept.get(ids, epochs)
        if found is None:
            return None
        batch, values = found
        images = values.pop(PIXELS, batch.images_NHWC)
        taps = {depth: from_rows(values[str(depth)], dtype).to(self.device) for depth, dtype in self._dtypes.items()}
        return KeptBatch(images, batch.rows, batch.failures, step=step, taps=taps)

    def _parts(self, segment: str, batches: int, here: bool) -> Iterator[tuple[int, int]]:
        """(part, of how many) of a segment: first those that no other pack computes, then those that one did, or left.

        A part for each pack, or several where they are read here and cost nothing to start: then no pack waits long.
        """
        cache, turns = self._reuse.cache, self._reuse.turns
        parts = min(turns * _PARTS, batches) if here else turns
        identity = hashlib.sha256(repr((sorted(self._identity.values()), segment, parts, self._rank)).encode())
        late = []
        for number in range(parts):
            part = (self._reuse.turn * parts // turns + number) % parts
            with cache.turn(f"{identity.hexdigest()}/{part}", wait=False) as mine:
                if mine:
                    yield part, parts
                else:
                    late.append(part)
        for part in late:
            with cache.turn(f"{identity.hexdigest()}/{part}", wait=True):
                yield part, parts


def _digest(*of: object) -> str:
    return hashlib.sha256(repr(of).encode()).hexdigest()


def parts_of(order: Order) -> Iterator[Part]:
    """(rows, epochs) of each batch of an order."""
    for number in range(order.num_blocks):
        rows, epochs = order.block(number)
        yield from zip(rows.reshape(-1, order.batch_rows), epochs.reshape(-1, order.batch_rows), strict=True)
