"""Which trial comes next, and what the store holds of each at every moment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from raycnn.config import Config, load_config
from raycnn.errors import DivergedError, StorageError, encode_error
from raycnn.searching import records
from raycnn.searching.board import Board, Stage, starting_order
from raycnn.searching.records import Evaluation, TrialRecord
from raycnn.storage.local import LocalStore

CONFIG = load_config(
    {
        "run": {"name": "s", "storage": "/x"},
        "data": {"source": "/y"},
        "model": {"name": "reference/lenet"},
        "train": {"global_batch": 10, "patience": 3, "metric": "accuracy"},
    }
)
DEPTHS = [2, 0, 0, 1, 0, "all"]


def values(number: int, history: Sequence[TrialRecord]) -> dict[str, Any]:
    return {"model.unfreeze": DEPTHS[number], "optim.lr": 0.01 * (1 + number)}


def cost(values: dict[str, Any]) -> float:
    return {0: 1.0, 1: 2.0, 2: 4.0, "all": 8.0}[values["model.unfreeze"]]


def stage(num_trials: int = 4, **changes: Any) -> Stage:
    return replace(Stage("search", range(num_trials), values, cost), **changes)


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path)


def board(store: LocalStore, of: Stage | None = None, packs: str = "p", prepare: Any = lambda config: None) -> Board:
    return Board(store, CONFIG, "max", of or stage(), list(packs), records.read_all(store), prepare)


def kept(store: LocalStore, trial: str) -> TrialRecord:
    return {each.id: each for each in records.read_all(store)}[trial]


def test_the_longest_start_first_where_all_will_run() -> None:
    def order(**search: Any) -> list[int]:
        return list(starting_order(load_config(CONFIG, search).search, 6, values, cost))

    assert order() == [5, 0, 3, 1, 2, 4]
    for others in ({"scheduler": "asha"}, {"searcher": "tpe"}, {"budget_s": 9}, {"budget_gpu_hours": 0.1}):
        assert order(**{f"search.{name}": value for name, value in others.items()}) == [0, 1, 2, 3, 4, 5]


def test_trials_start_in_the_order_of_their_stage(store: LocalStore) -> None:
    made = board(store, stage(numbers=[2, 0, 1]))
    assert [each["id"] for each in drain(made)] == ["0002", "0000", "0001"]


def drain(made: Board) -> list[dict[str, Any]]:
    return list(iter(made.next, None))


def evaluated(step: int, accuracy: float | None = 0.5, **outcome: Any) -> dict[str, Any]:
    return {
        "step": step,
        "epochs": step / 4,
        "metrics": {"accuracy": accuracy},
        "seconds": step / 3,
        "status": None,
        "error": None,
    } | outcome


def test_trials_come_in_their_order_each_once_with_all_that_tune_is_told(store: LocalStore) -> None:
    made = board(store)
    configs = drain(made)
    assert [config["id"] for config in configs] == ["0000", "0001", "0002", "0003"]
    assert configs[3] == {
        "id": "0003", "pack": "p", "values": values(3, []), "depth": "1", "spent_s": 0.0, "metric": "accuracy",
        "mode": "max",
    }  # fmt: skip
    assert made.next() is None
    assert [each.id for each in made.mine] == [config["id"] for config in configs]


def test_a_trial_is_kept_as_running_before_anything_of_it_starts(store: LocalStore) -> None:
    seen = []

    def prepare(config: Config) -> None:
        seen.append((config.model.unfreeze, config.optim.lr, [each.status for each in records.read_all(store)]))

    made = board(store, prepare=prepare)
    made.next()
    made.next()
    assert seen == [(2, 0.01, ["running"]), (0, 0.02, ["running", "running"])]
    assert kept(store, "0001") == TrialRecord("0001", values(1, []), "0")


def test_values_are_drawn_with_all_that_is_known(store: LocalStore) -> None:
    histories: list[list[tuple[str, str]]] = []

    def ask(number: int, history: Sequence[TrialRecord]) -> dict[str, Any]:
        histories.append([(each.id, each.status) for each in history])
        return values(number, history)

    made = board(store, stage(values=ask))
    made.next()
    made.reported("0000", values(0, []), evaluated(4, status="finished"))
    made.next()
    assert histories == [[], [("0000", "finished")]]


def test_interrupted_trials_come_first_under_their_own_name_and_none_twice(store: LocalStore) -> None:
    first = Evaluation(4, 1.0, 1.5, {"accuracy": 0.5})
    for number, status in enumerate(["finished", "running", "failed", "running"]):
        record = TrialRecord(f"{number:04d}", values(number, []), str(DEPTHS[number]), status, (first,))  # type: ignore[arg-type]
        records.write(store, record)
    records.write(store, TrialRecord("confirm-0000", {"train.seed": 5}, "all", stage="confirm"))
    drawn = []

    def ask(number: int, history: Sequence[TrialRecord]) -> dict[str, Any]:
        drawn.append(number)
        return values(number, history)

    configs = drain(board(store, stage(6, values=ask)))
    assert [(config["id"], config["spent_s"]) for config in configs] == [
        ("0001", 1.5), ("0003", 1.5), ("0004", 0.0), ("0005", 0.0)
    ]  # fmt: skip
    assert drawn == [4, 5]
    assert configs[0]["values"] == values(1, [])
    assert kept(store, "0001").evaluations == (first,)


def test_every_stage_has_trials_of_its_own(store: LocalStore) -> None:
    drain(board(store))
    confirm = board(
        store, stage(2, name="confirm", values=lambda number, _: {"train.seed": number}, cost=lambda _: 1.0)
    )
    assert [config["id"] for config in drain(confirm)] == ["confirm-0000", "confirm-0001"]
    assert [each.id for each in confirm.mine] == ["confirm-0000", "confirm-0001"]
    assert kept(store, "confirm-0001").stage == "confirm"


# costs 4, 1, 1, 2, 1 and 8: a takes the first, b the cheap ones until it has as much
def test_trials_go_to_the_pack_with_the_fewest_and_then_the_least_to_do(store: LocalStore) -> None:
    made = board(store, stage(6), packs="ab")
    assert [made.next()["pack"] for _ in range(5)] == ["a", "b", "b", "a", "b"]  # type: ignore[index]
    made.ended("0001", "stopped")
    made.ended("0002", "stopped")
    assert made.next()["pack"] == "b"  # type: ignore[index]  # one against two


def test_what_a_pack_had_to_do_is_forgotten_when_all_have_ended(store: LocalStore) -> None:
    made = board(store, stage(6), packs="ab")
    assert [made.next()["pack"] for _ in range(2)] == ["a", "b"]  # type: ignore[index]
    for trial in ("0000", "0001"):
        made.ended(trial, "stopped")
    assert made.next()["pack"] == "a"  # type: ignore[index]


def test_every_evaluation_is_kept_at_once(store: LocalStore) -> None:
    made = board(store)
    made.next()
    changed = {**values(0, []), "optim.lr": 0.5}
    made.reported("0000", values(0, []), evaluated(4, seconds=1.23456))
    assert kept(store, "0000").evaluations == (Evaluation(4, 1.0, 1.235, {"accuracy": 0.5}),)
    made.reported("0000", changed, evaluated(6, None))
    record = kept(store, "0000")
    assert [(each.step, each.epochs, each.metrics) for each in record.evaluations] == [
        (4, 1.0, {"accuracy": 0.5}), (6, 1.5, {"accuracy": None})
    ]  # fmt: skip
    assert (record.status, record.values) == ("running", changed)
    assert made.records["0000"] == record


def test_where_all_are_needed_a_failure_ends_the_stage_and_is_tried_again(store: LocalStore) -> None:
    made = board(store, stage(all_needed=True))
    made.next()
    made.next()
    error = encode_error(DivergedError("NaN", where="optim.lr", fix="lower it"))
    made.reported("0001", values(1, []), evaluated(8, metrics=None, error=error))
    assert isinstance(made.fatal, DivergedError)
    assert str(made.fatal) == "model.unfreeze 0, optim.lr 0.02: NaN (optim.lr): lower it"
    made.ended("0001", "by the scheduler")
    assert board(store).next()["id"] == "0000"  # type: ignore[index]
    assert kept(store, "0001").status == "running"


def test_what_is_evaluated_again_replaces_what_came_after(store: LocalStore) -> None:
    made = board(store)
    made.next()
    for step, accuracy in ((4, 0.1), (8, 0.2), (12, 0.3), (8, 0.4)):
        made.reported("0000", values(0, []), evaluated(step, accuracy))
    assert [(e.step, e.metrics["accuracy"]) for e in kept(store, "0000").evaluations] == [(4, 0.1), (8, 0.4)]


@pytest.mark.parametrize(
    ("outcome", "status", "reason"),
    [
        (evaluated(8, status="finished"), "finished", None),
        (evaluated(8, status="stopped_early"), "finished", "no better for train.patience 3"),
        (
            evaluated(8, metrics=None, error=encode_error(DivergedError("NaN", where="optim.lr", fix="lower it"))),
            "failed",
            "NaN (optim.lr): lower it",
        ),
        ({"status": "stopped"}, "running", None),
    ],
)
def test_how_a_trial_ends_by_itself(
    store: LocalStore, outcome: dict[str, Any], status: str, reason: str | None
) -> None:
    made = board(store)
    made.next()
    made.reported("0000", values(0, []), outcome)
    assert (kept(store, "0000").status, kept(store, "0000").reason) == (status, reason)
    assert len(kept(store, "0000").evaluations) == bool(outcome.get("metrics"))
    made.ended("0000", "by the scheduler")
    ended = ("stopped", "by the scheduler") if status == "running" else (status, reason)
    assert (kept(store, "0000").status, kept(store, "0000").reason) == ended


def test_a_trial_whose_actor_died_has_failed(store: LocalStore) -> None:
    made = board(store)
    made.next()
    made.ended("0000", "its pack died", failed=True)
    assert (kept(store, "0000").status, kept(store, "0000").reason) == ("failed", "its pack died")


def test_a_pack_that_cannot_go_on_changes_no_record(store: LocalStore) -> None:
    made = board(store)
    made.next()
    before = records.read_all(store)
    made.reported("0000", {}, {"fatal": encode_error(StorageError("down", where="s3"))})
    assert isinstance(made.fatal, StorageError)
    made.ended("0000", "Tune takes it as done")
    assert records.read_all(store) == before


def test_when_the_budget_ends_what_runs_counts_as_stopped(store: LocalStore) -> None:
    records.write(store, TrialRecord("confirm-0000", {"train.seed": 5}, "all", stage="confirm"))
    made = board(store)
    made.next()
    made.next()
    made.reported("0001", values(1, []), evaluated(8, status="finished"))
    made.out_of_budget()
    assert [(each.id, each.status) for each in records.read_all(store)] == [
        ("0000", "stopped"), ("0001", "finished"), ("confirm-0000", "running")
    ]  # fmt: skip
    assert kept(store, "0000").reason == "the budget of the search ended"


def test_a_trial_that_rests_takes_no_place_and_may_resume_in_another_pack(store: LocalStore) -> None:
    made = board(store, stage(6), packs="pq")
    packs = {config["id"]: config["pack"] for config in (made.next() for _ in range(4)) if config}
    assert packs == {"0000": "p", "0001": "q", "0002": "q", "0003": "p"}
    made.rest("0000")
    made.rest("0003")
    assert (made.next() or {})["pack"] == (made.next() or {})["pack"] == "p"
    made.rest("0002")
    assert made.resume("0000") == "q"
    made.rest("0003")
    made.ended("0003", "stopped while it rested")
    assert kept(store, "0003").status == "stopped"
