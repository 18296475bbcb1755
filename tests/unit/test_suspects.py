"""What out-of-fold predictions say of labels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
import torch.nn.functional as F

from raycnn.results.evaluate import Scores
from raycnn.results.suspects import HeldOut, confidently_other, losses, most_suspect, num_suspects, out_of_fold
from raycnn.training.problems import Binary, MultiLabel, OneLabel, Problem, Regression

CLASSES = ("a", "b", "c")


def held_out(fold: int, problem: Problem, outputs: Any, targets: Any, keys: str, **columns: Any) -> HeldOut:
    """The rows of a fold whose keys are letters; those in capitals could not be read."""
    table = pa.table({"key": list(keys), "alias": pa.nulls(len(keys), pa.string()), **columns})
    readable = np.array([number for number, key in enumerate(keys) if key.islower()])
    outputs_NK = np.array(outputs, np.float32)
    return HeldOut(fold, table, Scores(problem, outputs_NK, np.array(targets), [None] * len(targets), rows_N=readable))


def test_the_losses_are_those_that_torch_knows() -> None:
    rng = np.random.default_rng(0)
    outputs_NK, labels_N = rng.normal(0, 30, (40, 3)).astype(np.float32), rng.integers(0, 3, 40)
    logits = torch.from_numpy(outputs_NK).double()
    expected = F.cross_entropy(logits, torch.from_numpy(labels_N), reduction="none")
    np.testing.assert_allclose(losses(OneLabel(), outputs_NK, labels_N), expected, rtol=1e-9, atol=1e-12)
    yes_NK = (rng.random((40, 3)) < 0.5).astype(np.float32)
    each = F.binary_cross_entropy_with_logits(logits, torch.from_numpy(yes_NK).double(), reduction="none")
    np.testing.assert_allclose(losses(MultiLabel(3), outputs_NK, yes_NK), each.mean(1), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(losses(Binary(), outputs_NK[:, :1], yes_NK[:, :1]), each[:, 0], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(
        losses(Regression(5.0, 2.0), outputs_NK[:, :1], labels_N), (outputs_NK[:, 0].astype(float) - labels_N) ** 2
    )


def test_a_row_is_of_another_class_where_that_has_its_threshold() -> None:
    probabilities_NK = np.array(
        [
            [0.9, 0.1, 0.0],  # a, like most: the threshold of a is 0.7
            [0.9, 0.1, 0.0],
            [0.3, 0.6, 0.1],  # labelled a, and b at its threshold
            [0.4, 0.55, 0.05],  # labelled c, and b below its threshold
            [0.0, 0.6, 0.4],  # b: the threshold of b is 0.6
            [0.1, 0.6, 0.3],
            [0.65, 0.05, 0.3],  # labelled c: a is not sure enough, c is
            [0.1, 0.0, 0.55],  # c: the threshold of c is 0.3
        ]
    )
    labels_N = np.array([0, 0, 0, 2, 1, 1, 2, 2])
    assert np.flatnonzero(confidently_other(probabilities_NK, labels_N)).tolist() == [2]


def test_a_class_that_no_row_has_is_nobodys() -> None:
    assert not confidently_other(np.array([[0.4, 0.6], [0.3, 0.7]]), np.array([0, 0])).any()


def test_all_readable_rows_the_most_suspect_first() -> None:
    first = held_out(0, OneLabel(), [[9, 0, 0], [0, 9, 0]], [0, 0], "aXb")
    second = held_out(1, OneLabel(), [[0, 8, 0], [0, 0, 5], [1, 0, 0]], [1, 2, 0], "edc")
    table = out_of_fold([first, second], CLASSES)
    assert table.select(["rank", "key", "label", "predicted", "fold", "suspect"]).to_pylist() == [
        {"rank": 1, "key": "b", "label": "a", "predicted": "b", "fold": 0, "suspect": True},
        {"rank": 2, "key": "c", "label": "a", "predicted": "a", "fold": 1, "suspect": False},
        {"rank": 3, "key": "d", "label": "c", "predicted": "c", "fold": 1, "suspect": False},
        {"rank": 4, "key": "e", "label": "b", "predicted": "b", "fold": 1, "suspect": False},
        {"rank": 5, "key": "a", "label": "a", "predicted": "a", "fold": 0, "suspect": False},
    ]
    assert table["loss"][0].as_py() == pytest.approx(9, abs=1e-3)
    assert np.allclose([sum(row) for row in table["probabilities"].to_pylist()], 1)
    (worst,) = most_suspect(table, 1)
    assert worst.keys() == {"rank", "key", "label", "predicted", "probability", "fold", "loss", "suspect"}
    assert worst["probability"] == pytest.approx(1, abs=1e-3)
    assert num_suspects(table) == 1


def test_two_classes_several_and_numbers() -> None:
    two = out_of_fold([held_out(0, Binary(), [[3.0], [-3.0], [2.0]], [[1.0], [1.0], [0.0]], "abc")], CLASSES[:2])
    assert two["label"].to_pylist() == ["b", "a", "b"]
    assert two["predicted"].to_pylist() == ["a", "b", "b"]
    assert num_suspects(two) == 2
    several = out_of_fold([held_out(0, MultiLabel(3), [[5, -5, 5], [5, 5, -5]], [[1, 0, 0], [1, 1, 0]], "ab")], CLASSES)
    assert several["label"].to_pylist() == [["a"], ["a", "b"]]
    assert several["predicted"].to_pylist() == [["a", "c"], ["a", "b"]]
    units = [Regression(10.0, 2.0), Regression(0.0, 1.0)]  # each fold has a mean of its own
    numbers = out_of_fold(
        [
            held_out(0, units[0], [[0.5]], [0.0], "a", value=[10.0]),
            held_out(1, units[1], [[10.0]], [12.0], "b", value=[12.0]),
        ],
        (),
    )
    assert numbers.drop_columns(["rank", "fold"]).to_pylist() == [
        {"key": "b", "label": 12.0, "predicted": 10.0, "loss": 4.0},
        {"key": "a", "label": 10.0, "predicted": 11.0, "loss": 0.25},
    ]
    for table in (several, numbers):
        assert num_suspects(table) is None
        assert {(row["probability"], row["suspect"]) for row in most_suspect(table, 9)} == {(None, None)}
