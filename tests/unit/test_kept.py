"""What is kept of an image: whose value a row is, and how activations lie in it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from raycnn.data.dataset import Batch
from raycnn.data.reader import PADDING
from raycnn.storage.cache import Cache
from raycnn.training.kept import Kept, from_rows, to_rows


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("shape", [(3, 5, 2, 4), (3, 7), (2, 5, 1, 1)])
def test_activations_go_to_rows_and_back(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    values.flatten()[:3] = torch.tensor([float("nan"), float("-inf"), -0.0])
    if len(shape) == 4:
        values = values.to(memory_format=torch.channels_last)
    rows = to_rows(values)
    assert rows.shape == ((shape[0], *shape[2:], shape[1]) if len(shape) == 4 else shape)
    back = from_rows(np.ascontiguousarray(rows), dtype)
    bits = torch.int16 if dtype is torch.bfloat16 else torch.int32
    assert torch.equal(back.view(bits), values.view(bits))
    assert len(shape) == 2 or back.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("random", [False, True])
def test_whose_value_a_row_is(tmp_path: Path, random: bool) -> None:
    # rows 0 and 1 have the same bytes under two names
    table = pa.table({"key_hash": [1, 2, 3], "sha256": [b"a" * 32, b"a" * 32, b"b" * 32]})
    blanks = {"x": np.zeros(2, np.float32)}
    kept = Kept(Cache(tmp_path, 10**6), "start", table, {"x": "i"}, blanks, random=random)
    one, zero = np.array([0]), np.array([0])
    kept.put(Batch(np.zeros((0, 1, 1, 3), np.uint8), one, ()), one, zero, {"x": np.ones((1, 2), np.float32)})
    there = {(row, epoch): kept.there([(np.array([row]), np.array([epoch]))]) for row in (0, 1, 2) for epoch in (0, 1)}
    expected = {(0, 0)} if random else {(0, 0), (0, 1), (1, 0), (1, 1)}
    assert {place for place, has in there.items() if has} == expected
    assert kept.there([(np.array([0, PADDING]), np.array([0, 0]))])
    assert not kept.there([(np.array([0, 2]), np.array([0, 0]))])
    assert kept.get(np.array([0, 2]), np.array([0, 0])) is None
    kept.close()


def test_a_missing_image_is_masked_for_this_start_alone_and_not_its_twin(tmp_path: Path) -> None:
    table = pa.table({"key_hash": [1, 2], "sha256": [b"a" * 32, b"a" * 32]})
    both, zeros = np.array([0, 1]), np.array([0, 0])
    values = {"x": np.array([[0, 0], [5, 6]], np.float32)}

    def opened(start: str) -> Kept:
        blanks = {"x": np.zeros(2, np.float32)}
        return Kept(Cache(tmp_path, 10**6), start, table, {"x": "i"}, blanks, random=False)

    first = opened("first")
    first.put(Batch(np.zeros((0, 1, 1, 3), np.uint8), both, ((0, "missing"),)), both, zeros, values)
    found = first.get(both, zeros)
    assert found is not None
    assert found[0].failures == ((0, "missing"),)
    assert found[0].rows.tolist() == [PADDING, 1]
    assert found[1]["x"].tolist() == [[0, 0], [5, 6]]
    first.close()
    second = opened("second")  # the image was put back: it has the bytes of its twin
    found = second.get(both, zeros)
    assert found is not None
    assert found[0].failures == ()
    assert found[1]["x"].tolist() == [[5, 6], [5, 6]]
    second.close()
