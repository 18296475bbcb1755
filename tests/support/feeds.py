"""Feeds without Ray: a tree of small images, read by the real reader in this process."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from raycnn.config import AugmentConfig
from raycnn.data.dataset import Batch, Order
from raycnn.data.decode import Limits
from raycnn.data.plan import Plan
from raycnn.data.reader import PADDING, ImageReader
from raycnn.models.stages import find
from raycnn.models.zoo import build
from raycnn.storage.cache import Cache
from raycnn.training.augmenting import DeviceViews
from raycnn.training.device import Normalize
from raycnn.training.feed import Feed, Task
from raycnn.training.prefix import Prefix
from raycnn.training.ranks import Ranks
from raycnn.training.reuse import Reuse, ReusingFeed
from tests.support.images import encode, pixels

NETWORK = build("reference/lenet", 3, seed=0)
SIZE = NETWORK.preprocessing.image_size
TRAIN, VAL = range(10), range(10, 16)
BROKEN = 3, 13
"""Changed since they were indexed: one training row, one validation row, row 3 of either."""
CHUNK = 4
CPU = torch.device("cpu")


@dataclass
class World:
    """Images below a folder, the prefix of a network, a node's cache, and what was read: (key, epoch).

    Args:
        folder: where the images lie.
        cache: of the node.
        total: steps of the feeds.
    """

    folder: Path
    cache: Cache
    total: int
    reads: Counter[tuple[str, int]] = field(default_factory=Counter)
    order: list[tuple[str, int]] = field(default_factory=list)
    feeds: list[ReusingFeed] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.set_precision(torch.float32)

    def set_precision(self, precision: torch.dtype) -> None:
        """Of the prefix, for feeds made from now on."""
        self.prefix = Prefix(find(NETWORK), Normalize(NETWORK.preprocessing), CHUNK, precision)

    def stream(
        self, reader: ImageReader, table: pa.Table, order: Order, *, task_cpus: float, here: bool = False
    ) -> Iterator[Batch]:
        """In place of raycnn.data.dataset.stream."""
        keys = table["key"].to_pylist()
        for number in range(order.num_blocks):
            rows, epochs = (each.reshape(-1, order.batch_rows) for each in order.block(number))
            for ids, views in zip(rows, epochs, strict=True):
                seen = [(keys[row], epoch) for row, epoch in zip(ids.tolist(), views.tolist(), strict=True) if row >= 0]
                self.reads.update(seen)
                self.order += seen
                read = reader.read(table, ids, views)
                failed = [place for place, reason in enumerate(read.reasons) if reason]
                shown = ids.copy()
                shown[failed] = PADDING
                failures = tuple((int(ids[place]), read.reasons[place]) for place in failed)
                yield Batch(read.images_NHWC, shown, failures, read.fetch_s, read.decode_s, cached=read.kept)

    def task(self, augment: AugmentConfig | None = None) -> Task:
        """Ten training rows in steps of four, six validation rows."""
        decoded = augment and augment.decoded
        reader = ImageReader(str(self.folder), NETWORK.preprocessing, Limits(10**6, 10**6), 1, decoded, seed=3)
        late = DeviceViews(augment, 3, SIZE) if augment and augment.on_device else None
        scanner = replace(reader, augment=None, seed=0)
        plan = Plan(len(TRAIN), 4, 0)
        return Task(plan, self._rows(TRAIN), reader, self._rows(VAL), scanner, CHUNK, 1.0, 1, late)

    def plain(self, task: Task) -> Feed:
        """A feed that keeps nothing."""
        return Feed(task, self.prefix, CPU, Ranks(), self.total)

    def reusing(self, task: Task, choices: Any, turn: int = 0, turns: int = 1, weights: str = "w") -> ReusingFeed:
        """A feed that keeps what is chosen for each depth."""
        identity = {depth: f"{weights}{depth}" for depth in choices}
        reuse = Reuse(self.cache, "this start", choices, turn, turns)
        self.feeds.append(ReusingFeed(task, self.prefix, CPU, Ranks(), self.total, identity, reuse))
        return self.feeds[-1]

    def _rows(self, numbers: range) -> pa.Table:
        found = []
        for number in numbers:
            name, data = f"{number:02d}.png", encode(pixels(number, SIZE, SIZE), "PNG")
            place = {"key": name, "offset": 0, "length": len(data), "sha256": hashlib.sha256(data).digest()}
            found.append({**place, "key_hash": number, "label": number % 3})
            (self.folder / name).write_bytes(data[::-1] if number in BROKEN else data)
        return pa.Table.from_pylist(found).append_column("alias", pa.nulls(len(found), pa.string()))
