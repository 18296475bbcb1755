"""metrics.jsonl and events/ of a run's folder, as they follow from its commits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from raycnn.storage import open_store
from raycnn.storage.local import LocalStore
from raycnn.training.events import encode_events, encode_head
from raycnn.training.shown import Shown, read_lines

EVENTS = "events/events.out.tfevents.0.raycnn"


def line(step: int, loss: float = 1.0) -> str:
    return json.dumps({"step": step, "loss": loss})


def check(root: Path, expected: list[str]) -> None:
    store = open_store(str(root))
    assert read_lines(store) == expected
    assert store.get(EVENTS) == encode_head() + encode_events(expected)


def test_commits_add_their_lines(tmp_path: Path) -> None:
    shown = Shown(open_store(str(tmp_path)))
    shown.update([], 0)
    shown.update([line(5), line(10)], 10)
    shown.update([], 12)
    shown.update([line(15), line(20, 0.5), line(20)], 20)
    check(tmp_path, [line(5), line(10), line(15), line(20, 0.5), line(20)])


def test_another_writer_goes_on_and_drops_what_was_lost(tmp_path: Path) -> None:
    Shown(open_store(str(tmp_path))).update([line(5), line(10), line(15), line(25)], 25)
    resumed = Shown(open_store(str(tmp_path)))
    resumed.update([line(10, 0.5), line(15, 0.5)], 15)
    check(tmp_path, [line(5), line(10, 0.5), line(15, 0.5)])
    resumed.update([line(20)], 20)
    check(tmp_path, [line(5), line(10, 0.5), line(15, 0.5), line(20)])


def test_going_back_starts_from_what_is_there(tmp_path: Path) -> None:
    shown = Shown(open_store(str(tmp_path)))
    shown.update([line(5), line(10)], 10)
    shown.update([line(10, 0.5)], 10)
    check(tmp_path, [line(5), line(10, 0.5)])
    shown.update([], 7)
    check(tmp_path, [line(5)])


def test_only_the_first_update_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads = []
    get = LocalStore.get
    monkeypatch.setattr(LocalStore, "get", lambda self, key, *rest: (reads.append(key), get(self, key, *rest))[1])
    shown = Shown(open_store(str(tmp_path)))
    for step in range(5):
        shown.update([line(step)], step)
    assert reads == ["metrics.jsonl"]
