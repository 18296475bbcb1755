"""Blocks read by this process are those of the order, a little ahead of their use."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from raycnn.config import AugmentConfig
from raycnn.data import here
from raycnn.data.dataset import ScanOrder, TrainOrder, stream
from raycnn.data.here import BlocksHere, are_few, read_block
from raycnn.data.reader import PADDING, ImageReader
from raycnn.storage.cache import Cache
from tests.support.feeds import BROKEN, World


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path, Cache(tmp_path / "cache", 1), total=5)


def test_batches_are_those_of_the_order_as_the_reader_gives_them(world: World) -> None:
    task = world.task(AugmentConfig(crop_scale=(0.5, 1.0)))
    order = TrainOrder(task.plan, 0, 1, 1, 6, 2)
    batches = list(stream(task.reader, task.table, order, task_cpus=1, here=True))
    rows, epochs = task.plan.share(1, steps=5)
    assert len(batches) == 5
    read = task.reader.read(task.table, rows, epochs)
    np.testing.assert_array_equal(np.concatenate([batch.images_NHWC for batch in batches]), read.images_NHWC)
    shown = np.concatenate([batch.rows for batch in batches])
    np.testing.assert_array_equal(shown, np.where(rows == BROKEN[0], PADDING, rows))
    failures = [failure for batch in batches for failure in batch.failures]
    assert failures == [(BROKEN[0], "changed since it was indexed")] * int((rows == BROKEN[0]).sum())
    assert failures


def test_one_block_is_read_ahead_and_no_more(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []

    def noted(reader: ImageReader, table: pa.Table, order: Any, number: int) -> here.Block:
        read.append(number)
        return read_block(reader, table, order, number)

    monkeypatch.setattr(here, "read_block", noted)
    task = world.task()
    order = ScanOrder(10, 1, 1)
    got = BlocksHere(task.reader, task.table, order, 2, 10).iter_batches(batch_size=None)
    assert next(got)["row"].tolist() == [2]
    assert set(read) <= {2, 3}
    assert [int(block["row"][0]) for block in got] == [*range(3, 10)]
    assert read == [*range(2, 10)]


@pytest.mark.parametrize(("bytes_each", "few"), [(1 << 20, True), ((1 << 20) + 1, False)])
def test_few_are_as_many_as_have_so_many_bytes_over_all_their_views(bytes_each: int, few: bool) -> None:
    table = pa.table({"length": [bytes_each - 1, bytes_each + 1]})
    assert are_few(table, ScanOrder(128, 16, 2)) is few
    assert are_few(table, ScanOrder(0, 16, 2))
