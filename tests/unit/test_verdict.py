"""An epoch's verdict, with each part of the loop slowed in turn."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raycnn.config import load_config
from raycnn.data import reader as reading
from raycnn.data.dataset import Batch, TrainOrder
from raycnn.storage import open_store
from raycnn.storage.cache import Cache
from raycnn.storage.lease import acquire, read_lease
from raycnn.training import feed as feeds
from raycnn.training import loop, transfer
from raycnn.training.badrows import BadRows
from raycnn.training.clock import Clock
from raycnn.training.committer import Committer
from raycnn.training.learner import Learner
from raycnn.training.loop import close, train
from raycnn.training.member import Member
from raycnn.training.ranks import Ranks
from raycnn.training.recorder import Recorder, Run
from raycnn.training.reuse import KeptBatch
from raycnn.training.setup import Body, facts_of
from raycnn.training.state import TrainState
from raycnn.training.verdict import SHARES, EpochTimes, sentence, verdict
from tests.support.feeds import CPU, World

EMPTY = np.zeros((0, 1, 1, 3), np.uint8), np.zeros(0, np.int64), ()
SLOW = {
    "fetch": (reading, "open_rows"),
    "decode": (reading, "decode"),
    "transfer": (transfer, "to_device"),
    "compute": (Learner, "backward"),
    "evaluate": (loop, "validate"),
    "checkpoint": (Committer, "submit"),
    "wait": (World, "stream"),
    "ranks": (Ranks, "agree"),
}


def lines_of_a_run(root: Path) -> list[dict[str, Any]]:
    """metrics.jsonl of two epochs of the loop, with all its parts but Ray."""
    settings = {
        "run": {"name": "r", "storage": str(root)},
        "data": {"source": "/y", "bad_image_budget": 0.5},
        "model": {"name": "reference/lenet", "weights": "none"},
        "train": {"epochs": 2, "global_batch": 4, "chunk": 4, "checkpoint_every": 1},
    }
    config, store = load_config(settings), open_store(str(root / "r"))
    world = World(root / "images", Cache(root / "cache", 0), total=5)
    world.folder.mkdir()
    task, facts, clock = world.task(), facts_of(config, ("a", "b", "c")), Clock()
    with acquire(store, lambda _: -1) as lease, pytest.MonkeyPatch.context() as patch:
        patch.setattr(feeds, "stream", world.stream)
        run = Run(store, config, read_lease(store), 1)
        body = Body(config, facts, CPU)
        member = Member(body.learner(config, Ranks(), None), TrainState(facts), Recorder(run), task, clock)
        feed = feeds.Feed(task, body.prefix, CPU, Ranks(), member.total, clock)
        bad_rows = BadRows(task.table, 16, 0, 0.5)
        train([member], feed, Ranks(), bad_rows, None, clock, times=EpochTimes(clock))
        assert close(member, Ranks()) is None
        assert lease.epoch == 1
    return [json.loads(line) for line in store.get("metrics.jsonl").decode().splitlines()]


@pytest.mark.parametrize("slow", SLOW)
def test_what_is_slowed_is_what_limits(slow: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now, (place, name) = [0.0], SLOW[slow]
    whole: Any = getattr(place, name)

    def slowly(*given: Any, **named: Any) -> Any:
        now[0] += 1
        return whole(*given, **named)

    def slow_stream(*given: Any, **named: Any) -> Iterator[Any]:
        for batch in whole(*given, **named):
            now[0] += isinstance(given[3], TrainOrder)
            yield batch

    monkeypatch.setattr(time, "perf_counter", lambda: now[0])  # passes in what is slowed alone
    monkeypatch.setattr(place, name, slow_stream if slow == "wait" else slowly)
    told = [line for line in lines_of_a_run(tmp_path) if "verdict" in line]
    assert [line["epoch"] for line in told] == [1, 2]
    for line in told:
        assert set(line["shares"]) == set(SHARES)
        assert sum(line["shares"].values()) == pytest.approx(1, abs=0.01)
        assert max(line["shares"], key=line["shares"].get) == slow
        assert line["verdict"] == verdict([seconds(**line["shares"])])["verdict"]


def test_time_in_which_batches_came_from_the_cache_is_the_cache_s() -> None:
    clock = Clock()
    times = EpochTimes(clock)
    for data_s, batch in ((1, KeptBatch(*EMPTY)), (5, Batch(*EMPTY, fetch_s=2, decode_s=1)), (3, KeptBatch(*EMPTY))):
        clock.seconds["data"] += data_s
        times.read(batch)
    found = times.close()
    assert {name: found[name] for name in ("wait", "fetch", "decode", "cache")} == {
        "wait": 2, "fetch": 2, "decode": 1, "cache": 4,
    }  # fmt: skip
    assert found["cached"] == 2 / 3


def seconds(**spent: float) -> dict[str, float]:
    return dict.fromkeys((*SHARES, "cached"), 0.0) | spent


def test_the_rank_that_the_others_wait_for_is_the_one_that_counts() -> None:
    found = verdict([seconds(compute=2, ranks=8), seconds(fetch=8, compute=2), seconds(compute=2, ranks=8)])
    assert found["shares"]["fetch"] == 0.8
    assert found["verdict"].startswith("80% of the time it waits for bytes: raise data.fetch_threads")


def test_computing_limits_unless_something_that_can_be_changed_takes_a_fifth() -> None:
    assert "it computes" in verdict([seconds(compute=81, decode=19)])["verdict"]
    assert "for decoding" in verdict([seconds(compute=79, decode=21)])["verdict"]
    assert "for commits" in verdict([seconds(compute=10, checkpoint=15, **{"fetch": 1})])["verdict"]


def test_nothing_is_said_of_no_time() -> None:
    assert set(verdict([seconds()])["shares"].values()) == {0.0}


def test_a_line_names_what_took_time() -> None:
    text = sentence(3, verdict([seconds(compute=90, decode=9.8, transfer=0.2)]))
    assert text.startswith("epoch 3: decode 10%, compute 90%; 90% of the time it computes: ")
    cached = sentence(3, verdict([seconds(compute=1, cached=1), seconds(compute=1)]))
    assert cached.startswith("epoch 3: compute 100%, 50% of the images from the cache; ")


def test_of_short_epochs_people_hear_every_ten_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    times, heard = EpochTimes(Clock()), []
    for _ in range(25):
        if times.due():
            heard.append(now[0])
        now[0] += 1
    assert heard == [100, 110, 120]
