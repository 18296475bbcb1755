"""Ray Data executes an order of rows: decoding tasks make blocks, each rank reads its own ordered stream of batches.

A block is all a task decodes at once; it is the same rows wherever it runs, so the stream has no state to save:
starting at step s is asking for the blocks from step s on. The stream belongs to the process that reads it; ranks share
nothing but the cluster. Ray Data does not document that blocks keep their order through map_batches with
`preserve_order`, so every batch carries its row ids and they are compared with the order.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from raycnn.data.here import BlocksHere, read_block
from raycnn.data.plan import Plan
from raycnn.data.reader import PADDING, ImageReader
from raycnn.errors import decode_error

Int64s = npt.NDArray[np.int64]
IMAGES_PER_BLOCK = 256
_STORE_SHARE = 0.25  # of the cluster's object store, for streams of one kind; training's and validation's overlap
_BLOCKS_PER_STREAM = 1024  # Ray Data keeps one entry per block from the start


class Order(Protocol):
    """Which rows stand in which block."""

    @property
    def world(self) -> int:
        """Streams of such orders at the same time, at least."""

    @property
    def num_blocks(self) -> int:
        """Blocks from the first to the last."""

    @property
    def batch_rows(self) -> int:
        """Rows of a batch; a block is a whole number of batches."""

    def block(self, number: int) -> tuple[Int64s, Int64s]:
        """(rows, epochs) of one block; PADDING where a place stays empty."""


@dataclass(frozen=True)
class TrainOrder:
    """One rank's share of the plan in steps [start, stop), `steps_per_block` steps a block.

    Of `turns` orders, each with a `turn` of its own, every one has the blocks that are its turn.
    """

    plan: Plan
    rank: int
    world: int
    start: int
    stop: int
    steps_per_block: int
    turn: int = 0
    turns: int = 1

    @property
    def num_blocks(self) -> int:
        """Blocks; the last may hold fewer steps."""
        return len(range(self.turn, -(-(self.stop - self.start) // self.steps_per_block), self.turns))

    @property
    def batch_rows(self) -> int:
        """Rows of one rank in one step."""
        return self.plan.global_batch // self.world

    def block(self, number: int) -> tuple[Int64s, Int64s]:
        """The rows of steps_per_block steps, and their epochs."""
        steps = self.steps(number)
        return self.plan.share(steps.start, self.rank, self.world, len(steps))

    def steps(self, number: int) -> range:
        """The steps of a block."""
        first = self.start + (self.turn + number * self.turns) * self.steps_per_block
        return range(first, min(first + self.steps_per_block, self.stop))


@dataclass(frozen=True)
class ScanOrder:
    """Every row once, in chunks of one fixed size dealt out to the ranks in turn; the last chunk is padded."""

    num_rows: int
    chunk: int
    chunks_per_block: int
    rank: int = 0
    world: int = 1

    @classmethod
    def shared_out(cls, num_rows: int, chunk: int, workers: int) -> ScanOrder:
        """In blocks that are many enough for all workers, however few the rows."""
        chunks = -(-num_rows // chunk)
        return cls(num_rows, chunk, max(1, min(batches_per_block(chunk), chunks // (2 * workers))))

    @property
    def num_blocks(self) -> int:
        """Blocks of this rank."""
        return -(-self._num_chunks // self.chunks_per_block)

    @property
    def batch_rows(self) -> int:
        """The chunk."""
        return self.chunk

    @property
    def _num_chunks(self) -> int:
        total = -(-self.num_rows // self.chunk)
        return len(range(self.rank, total, self.world))

    def block(self, number: int) -> tuple[Int64s, Int64s]:
        """Rows of chunks_per_block chunks, padded; the epoch is 0."""
        first = number * self.chunks_per_block
        turns = np.arange(first, min(first + self.chunks_per_block, self._num_chunks), dtype=np.int64)
        chunks = self.rank + turns * self.world
        rows = (chunks[:, None] * self.chunk + np.arange(self.chunk, dtype=np.int64)).ravel()
        return np.where(rows < self.num_rows, rows, PADDING), np.zeros(len(rows), np.int64)


@dataclass(frozen=True)
class Batch:
    """Images of one step or chunk.

    rows holds the row ids, PADDING where a place is empty or its image could not be read; failures says which and why.
    fetch_s and decode_s are the seconds that a task took for it. step is that of the plan; None: to be validated on.
    cached is of how many images a node had the bytes.
    """

    images_NHWC: npt.NDArray[np.uint8]
    rows: Int64s
    failures: tuple[tuple[int, str], ...]
    fetch_s: float = 0.0
    decode_s: float = 0.0
    step: int | None = None
    cached: float = 0.0


def batches_per_block(batch_rows: int, wanted: int | None = None) -> int:
    """Batches that one task decodes: as told, or about IMAGES_PER_BLOCK images."""
    return wanted or max(1, IMAGES_PER_BLOCK // batch_rows)


def blocks(reader: ImageReader, table: pa.Table, order: Order, *, task_cpus: float, first: int, last: int) -> Any:
    """A ray.data.Dataset of the decoded blocks [first, last): one Ray block each; see `batches_of`."""
    import ray

    table_ref = ray.put(table)

    def decode_block(ids: dict[str, npt.NDArray[np.int64]]) -> dict[str, Any]:
        return read_block(reader, ray.get(table_ref), order, int(ids["id"][0]))

    # not range or from_arrow, whose tasks take a whole CPU each and wait for ever where less is free
    dataset = ray.data.from_blocks([pa.table({"id": [number]}) for number in range(first, last)])
    dataset = dataset.map_batches(decode_block, batch_size=None, num_cpus=task_cpus)
    quiet(dataset.context)
    # else each of them fills half of the cluster's store, and from three ranks on they spill to disk
    store: float = ray.cluster_resources().get("object_store_memory", 0.0)  # type: ignore[no-untyped-call]
    room = store * _STORE_SHARE / order.world
    dataset.context.execution_options.resource_limits = ray.data.ExecutionResources(object_store_memory=room)
    return dataset


def quiet(context: Any) -> None:
    """Settings of every dataset here: ordered, silent."""
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.verbose_progress = False
    context.custom_execution_callback_classes = [*context.custom_execution_callback_classes, _pace()]


def _pace() -> type:
    """A callback that keeps Ray Data's scheduling loop from spinning while its consumer is busy.

    With all output buffered the loop has nothing to wait for and takes a whole core (measured with Ray 2.60: half of
    a rank's CPU time); blocks come a few times a second, so 40 turns a second cost nothing.
    """
    from ray.data._internal.execution.execution_callback import ExecutionCallback

    class Pace(ExecutionCallback):
        def on_execution_step(self, executor: Any) -> None:
            time.sleep(0.025)

    return Pace


def stream(
    reader: ImageReader, table: pa.Table, order: Order, *, task_cpus: float, here: bool = False
) -> Iterator[Batch]:
    """The batches of an order, decoded by Ray tasks ahead of their use.

    Args:
        reader: how a row becomes an image.
        table: the rows, with the columns reader.COLUMNS; row ids are its row numbers.
        order: which rows, in which batches.
        task_cpus: Ray CPUs of one decoding task.
        here: decoded by threads of this process instead.

    Raises:
        StorageError: the object store failed.
    """
    if here:
        yield from _checked(BlocksHere(reader, table, order, 0, order.num_blocks), order, 0, order.num_blocks)
        return
    for first in range(0, order.num_blocks, _BLOCKS_PER_STREAM):
        last = min(first + _BLOCKS_PER_STREAM, order.num_blocks)
        dataset = blocks(reader, table, order, task_cpus=task_cpus, first=first, last=last)
        yield from _checked(dataset, order, first, last)


def batches_of(dataset: Any, **options: Any) -> Iterator[dict[str, npt.NDArray[Any]]]:
    """dataset.iter_batches of `blocks` as numpy; the RaycnnError of a task is raised here."""
    for got in dataset.iter_batches(batch_format="numpy", **options):
        failed = got["error"][got["error"] != ""]
        if len(failed):
            raise decode_error(str(failed[0]))
        yield got


def _checked(dataset: Any, order: Order, first: int, last: int) -> Iterator[Batch]:
    expected = _batches_of(order, first, last)
    for got in batches_of(dataset, batch_size=order.batch_rows, prefetch_batches=2):
        rows = got["row"]
        if not np.array_equal(rows, next(expected)):
            raise RuntimeError("rows came in another order than planned; please report this")
        failed = np.flatnonzero(got["reason"] != "")
        failures = tuple((int(rows[i]), str(got["reason"][i])) for i in failed)
        if failures:
            rows = rows.copy()
            rows[failed] = PADDING
        told: dict[str, Any] = {name: float(got[name].sum()) for name in ("fetch_s", "decode_s", "cached")}
        yield Batch(got["image"], rows, failures, **told)


def _batches_of(order: Order, first: int, last: int) -> Iterator[Int64s]:
    for number in range(first, last):
        rows, _ = order.block(number)
        yield from rows.reshape(-1, order.batch_rows)
