"""Which search came before this one."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from raycnn.config import Config, dated, load_config
from raycnn.searching import records
from raycnn.searching.former import find_former
from raycnn.searching.records import Evaluation, TrialRecord
from raycnn.storage.local import LocalStore

PATTERN = "nightly-%Y-%m-%d"
NIGHT = datetime(2026, 11, 22, 3, 0, tzinfo=UTC)


def config(name: str = PATTERN) -> Config:
    return load_config(
        {"run": {"name": name, "storage": "/x"}, "data": {"source": "/y"}, "model": {"name": "reference/lenet"}}
    )


def night(days: int, pattern: str = PATTERN) -> str:
    """The name of the search so many days after the first."""
    return dated(config(pattern), NIGHT + timedelta(days=days)).run.name


@pytest.fixture
def root(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path)


def end(root: LocalStore, *names: str) -> None:
    for name in names:
        root.put(f"{name}/search/result.json", b"{}")


def found(root: LocalStore, name: str, pattern: str = PATTERN) -> str | None:
    former = find_former(pattern, name, root.uri)
    return former and former.name


def test_the_newest_that_has_ended_before_this_one(root: LocalStore) -> None:
    assert night(0) == "nightly-2026-11-22"
    assert found(root, night(0)) is None
    end(root, night(0), night(1), night(40), night(41))
    root.put(f"{night(39)}/search/trials/0000/trial.json", b"{}")  # interrupted
    root.put(f"{night(38)}/search/results.csv", b"")
    assert found(root, night(40)) == night(1)
    assert found(root, night(41)) == night(40)
    assert found(root, night(1)) == night(0)
    assert found(root, night(0)) is None  # not itself, and none that came later


def test_it_gives_the_folder_of_that_search(root: LocalStore) -> None:
    end(root, night(0))
    former = find_former(PATTERN, night(1), root.uri)
    assert former is not None
    assert former.store.get("search/result.json") == b"{}"


def test_other_names_are_other_searches(root: LocalStore) -> None:
    end(root, "nightly", "nightly-2026", "anightly-2026-11-20", "another-2026-11-20", "index")
    assert found(root, night(0)) is None


def test_a_name_without_a_date_has_no_former(root: LocalStore) -> None:
    end(root, "nightly-1", "nightly-2")
    assert found(root, "nightly-3", "nightly-3") is None


def test_what_else_is_in_a_pattern_is_taken_as_it_is(root: LocalStore) -> None:
    pattern = "a.b-%Y%m%d"
    end(root, "aXb-20261120")
    assert found(root, night(0, pattern), pattern) is None
    end(root, night(-1, pattern))
    assert found(root, night(0, pattern), pattern) == "a.b-20261121"


def test_its_three_best_are_tried_first(root: LocalStore) -> None:
    end(root, night(0))
    store = root.child(night(0))
    for number, accuracy in enumerate([0.1, 0.9, 0.5, 0.7, None]):
        evaluations = (Evaluation(4, 1.0, 1.0, {"accuracy": accuracy}),)
        records.write(store, TrialRecord(f"{number:04d}", {"optim.lr": number}, "0", "finished", evaluations))
    best = (Evaluation(4, 1.0, 1.0, {"accuracy": 1.0}),)
    records.write(store, TrialRecord("0005", {"optim.lr": 5}, "0", "failed", best))
    records.write(store, TrialRecord("confirm-0000", {"optim.lr": 6}, "0", "finished", best, stage="confirm"))
    former = find_former(PATTERN, night(1), root.uri)
    assert former is not None
    assert former.best_values(config()) == [{"optim.lr": 1}, {"optim.lr": 3}, {"optim.lr": 2}]
