"""How many rows go through at once, and what becomes of it when memory runs out on one of several ranks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from raycnn.config import load_config
from raycnn.errors import ConfigError
from raycnn.training.passes import MicroBatch, keep
from raycnn.training.ranks import Ranks
from raycnn.training.setup import Body, facts_of
from tests.bench.group import on_ranks
from tests.unit.test_exact import learner as exact_learner
from tests.unit.test_exact import one_thread, trained

__all__ = ["one_thread"]


@given(st.integers(1, 100), st.integers(1, 120))
def test_pieces_are_even_and_hold_every_row_once(num_rows: int, most: int) -> None:
    pieces = MicroBatch(most).pieces(num_rows)
    assert [row for piece in pieces for row in range(piece.start, piece.stop)] == list(range(num_rows))
    sizes = [piece.stop - piece.start for piece in pieces]
    assert max(sizes) <= most
    assert max(sizes) - min(sizes) <= 1
    assert len(sizes) == -(-num_rows // min(most, num_rows))


@pytest.mark.parametrize("setting", [None, "auto"])
def test_without_a_limit_all_go_at_once(setting: Any) -> None:
    assert MicroBatch(setting).pieces(7) == [slice(0, 7)]


def holds(rows: int, made: MicroBatch, log: list[int]) -> Callable[[], str]:
    """Work in passes of what is allowed for 100 rows, on a rank whose memory holds so many."""

    def work() -> str:
        piece = made.pieces(100)[0]
        log.append(piece.stop - piece.start)
        if piece.stop - piece.start > rows:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return "done"

    return work


def test_it_is_halved_until_it_fits_and_stays_so() -> None:
    made, log = MicroBatch("auto"), list[int]()
    undone: list[int] = []
    for step in range(2):
        assert made.fit(holds(13, made, log), 100, lambda: undone.append(step), Ranks(), step) == "done"  # noqa: B023
    assert made.rows == 12
    assert log == [100, 50, 25, 12, 12]
    assert undone == [0, 0, 0]


def test_another_ranks_failure_counts_as_ones_own() -> None:
    class Others:
        told = iter([1.0, 1.0, 0.0])

        def sum(self, values: list[float]) -> list[float]:
            return [values[0] + next(self.told)]

    made, log = MicroBatch("auto"), list[int]()
    assert made.fit(holds(1000, made, log), 100, lambda: None, Others(), 0) == "done"
    assert log == [100, 50, 25]


def test_other_errors_pass() -> None:
    def work() -> None:
        raise RuntimeError("odd")

    with pytest.raises(RuntimeError, match="odd"):
        MicroBatch("auto").fit(work, 100, lambda: None, Ranks(), 0)


def test_kept_tensors_come_back() -> None:
    tensors = [torch.zeros(2), torch.ones(1)]
    back = keep(tensors)
    for each in tensors:
        each += 5
    back()
    assert [each.tolist() for each in tensors] == [[0, 0], [1]]


def test_sync_ties_passes_together() -> None:
    changes = {"train.micro_batch": "auto", "model.batchnorm": "sync"}
    with pytest.raises(ConfigError, match="sync ties the passes of all workers together"):
        load_config(
            {"run": {"name": "r", "storage": "/x"}, "data": {"source": "/y"}, "model": {"name": "timm/x"}}, changes
        )
    assert exact_learner(Ranks(), **{"train.micro_batch": 2}).micro_batch.rows == 2


def test_exact_training_stays_exact_in_passes() -> None:
    """Four shards of four rows, in passes of two: dropout is drawn for each of them."""
    ((expected,), losses) = trained(1, **{"train.micro_batch": 3})
    assert len(losses) == len(set(losses)) == 8
    ((whole,), _) = trained(1)
    assert any(not torch.equal(whole[name], expected[name]) for name in whole)
    weights, found = trained(2, **{"train.micro_batch": 3})
    assert found == losses
    for each in weights:
        assert [name for name in expected if not torch.equal(each[name], expected[name])] == []


def weights_after(ranks: Ranks, setting: Any, memory: list[int]) -> tuple[dict[str, Tensor], int | None]:
    """Two steps on 8 rows a rank, of which rank r's memory holds memory[r] at once."""
    tree = {
        "run": {"name": "r", "storage": "/x"}, "data": {"source": "/y"}, "model": {"name": "reference/lenet"},
        "optim": {"name": "sgd"}, "loss": {"l2": 0.01}, "train": {"global_batch": 16, "micro_batch": setting},
    }  # fmt: skip
    config = load_config(tree)
    torch.manual_seed(0)
    body = Body(config, facts_of(config, ("a", "b")), torch.device("cpu"))
    made = body.learner(config, ranks)
    made.enter("all")
    network = made.gradients.network

    def forward(inputs: Tensor) -> Tensor:
        if len(inputs) > memory[ranks.rank]:
            raise torch.OutOfMemoryError("CUDA out of memory")
        outputs: Tensor = network(inputs)
        return outputs

    made.gradients.network = forward
    for step in range(2):
        images = torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(step))
        own = slice(8 * ranks.rank, 8 * ranks.rank + 8) if ranks.world > 1 else slice(0, 16)
        inputs = images.contiguous(memory_format=torch.channels_last)[own]
        valid = torch.arange(16)[own] != 3
        made.backward(inputs, torch.arange(16)[own] % 2, valid, 15.0, step)
        made.step(0.05)
    found = {name: tensor.clone() for name, tensor in made.module.state_dict().items()}
    gathered = ranks.gather(found)
    assert all(torch.equal(found[name], each[name]) for each in gathered for name in found)
    return found, made.micro_batch.rows


def several(ranks: Ranks) -> list[Any]:
    plain, big = [8, 8], [1000, 1000]
    return [
        weights_after(ranks, None, big),
        weights_after(ranks, 3, big),
        weights_after(ranks, "auto", big),
        weights_after(ranks, "auto", [8, 3]),
        weights_after(ranks, 2, plain),
    ]


def test_two_ranks_agree_on_the_gradient_of_the_whole_batch(tmp_path: Path) -> None:
    expected, _ = weights_after(Ranks(), None, [1000])
    found = on_ranks(several, tmp_path)
    assert [rows for _, rows in found] == [None, 3, None, 2, 2]
    for weights, _ in found:
        for name, tensor in weights.items():
            torch.testing.assert_close(tensor, expected[name], rtol=1e-4, atol=1e-6)
