"""Crash everywhere: the writer dies, or is told nothing, before and after each of its requests.

P6 is asserted at every such moment: what `latest` returns verifies, and once there was a commit there always is one.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import pytest

from raycnn.errors import RunBusyError, StorageError
from raycnn.storage.base import Entry
from raycnn.storage.lease import LeaseRecord
from raycnn.storage.local import LocalStore
from raycnn.training import checkpoint
from raycnn.training.checkpoint import Commit

T = TypeVar("T")
BEFORE, AFTER = "before", "after"


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # processes die here, machines do not


class Killed(BaseException):
    """What ends the writer; no handler of ours may catch it."""


@dataclass
class Interrupted:
    """A store that calls `fault` before or after its `at`-th request takes effect; a deletion counts by key."""

    inner: LocalStore
    at: int = 0
    moment: str = BEFORE
    fault: Callable[[], None] = lambda: None
    requests: int = 0

    @property
    def uri(self) -> str:
        return self.inner.uri

    def _request(self, act: Callable[[], T]) -> T:
        self.requests += 1
        here = self.requests == self.at
        if here and self.moment == BEFORE:
            self.fault()
        result = act()
        if here and self.moment == AFTER:
            self.fault()
        return result

    def get(self, key: str) -> bytes:
        return self._request(lambda: self.inner.get(key))

    def stat(self, key: str) -> Entry:
        return self._request(lambda: self.inner.stat(key))

    def put(self, key: str, data: bytes, **condition: Any) -> str:
        return self._request(lambda: self.inner.put(key, data, **condition))

    def list(self, prefix: str = "") -> Iterator[Entry]:
        return iter(self._request(lambda: list(self.inner.list(prefix))))

    def delete(self, keys: Iterable[str]) -> None:
        for key in keys:
            self._request(lambda key=key: self.inner.delete([key]))  # type: ignore[misc]


def die() -> None:
    raise Killed


def lose_the_answer() -> None:
    raise StorageError("no answer within the deadline")


def write(store: Any, step: int, epoch: int, guard: Callable[[], None] = lambda: None) -> Commit:
    names = ("weights.safetensors", "optimizer.pt", "state.json", "metrics.jsonl")
    files = {name: f"{name} {step} {epoch}".encode() for name in names}
    return checkpoint.write(store, step, epoch, files, {"metrics": {"loss": step}}, guard=guard)


def begin(record: LeaseRecord, store: LocalStore) -> LeaseRecord:
    """The next epoch, as a takeover or a new worker group begins it."""
    newest = checkpoint.latest(store, record)
    bases = {**record.bases, record.epoch + 1: newest.step if newest else -1}
    return replace(record, epoch=record.epoch + 1, bases=bases)


def populate(store: LocalStore) -> LeaseRecord:
    """Three commits of epoch 1, a fenced-out one beyond the base, an orphan; epoch 2 has begun."""
    record = begin(LeaseRecord(), store)
    for step in (10, 20, 30):
        write(store, step, 1)
    record = begin(record, store)
    write(store, 40, 1)
    store.put("checkpoints/step-00000050.e001/weights.safetensors", b"half")
    return record


def commit_and_prune(store: Any, record: LeaseRecord, step: int, keep: int) -> Commit:
    """What the training loop does after a step: the earliest commit is the best one."""
    commit = write(store, step, record.epoch)
    found = checkpoint.commits(store, record)
    checkpoint.prune(store, record, keep, checkpoint.best(found, "loss", "min"))
    return commit


def interruptions(tmp_path: Path, work: Callable[[Any, LeaseRecord], Any]) -> Iterator[tuple[Interrupted, LeaseRecord]]:
    """For each request of `work` and each moment, a populated store that is interrupted there."""
    counted = Interrupted(LocalStore(tmp_path / "count"))
    work(counted, populate(counted.inner))
    assert counted.requests > 5
    for at, moment in itertools.product(range(1, counted.requests + 1), (BEFORE, AFTER)):
        store = LocalStore(tmp_path / f"{at}-{moment}")
        record = populate(store)
        yield Interrupted(store, at, moment), record


def intact(store: LocalStore, record: LeaseRecord | None) -> Commit:
    """P6."""
    newest = checkpoint.latest(store, record)
    assert newest is not None
    assert len(checkpoint.verified(store, newest)) == 4
    return newest


def test_the_first_commit_is_there_or_not(tmp_path: Path) -> None:
    for at, moment in itertools.product(range(1, 6), (BEFORE, AFTER)):
        store = Interrupted(LocalStore(tmp_path / f"{at}-{moment}"), at, moment, die)
        with pytest.raises(Killed):
            write(store, 10, 1)
        newest = checkpoint.latest(store.inner, None)
        assert (newest is not None) == ((at, moment) == (5, AFTER))


@pytest.mark.parametrize("keep", [1, 2])
def test_killed_anywhere_in_a_commit_and_its_prune(tmp_path: Path, keep: int) -> None:
    def work(store: Any, record: LeaseRecord) -> Commit:
        return commit_and_prune(store, record, 60, keep)

    for store, record in interruptions(tmp_path, work):
        store.fault = die
        with pytest.raises(Killed):
            work(store, record)
        newest = intact(store.inner, record)
        assert newest.place == ((60, 2) if (store.at, store.moment == AFTER) >= (5, True) else (30, 1))

        record = begin(record, store.inner)  # the same command again
        assert intact(store.inner, record) == newest
        commit_and_prune(store.inner, record, 70, keep)
        assert intact(store.inner, record).place == (70, 3)
        kept = [(10, 1), newest.place, (70, 3)] if keep == 2 else [(10, 1), (70, 3)]
        assert store.inner.folders("checkpoints") == [f"step-{s:08d}.e{e:03d}" for s, e in kept]


def test_killed_again_while_it_recovers(tmp_path: Path) -> None:
    def recover(store: Any, record: LeaseRecord) -> Commit:
        return commit_and_prune(store, record, 70, 1)

    for first in (4, 5, 12):
        for store, record in interruptions(tmp_path / str(first), recover):
            with pytest.raises(Killed):
                commit_and_prune(Interrupted(store.inner, first, AFTER, die), record, 60, 1)
            record = begin(record, store.inner)
            before = intact(store.inner, record)
            store.fault = die
            try:
                recover(store, record)
            except Killed:
                assert intact(store.inner, record).place in (before.place, (70, 3))
            else:
                assert intact(store.inner, record).place == (70, 3)


def test_an_unanswered_request_is_made_good_by_the_same_call_again(tmp_path: Path) -> None:
    def work(store: Any, record: LeaseRecord) -> Commit:
        return commit_and_prune(store, record, 60, 2)

    for store, record in interruptions(tmp_path, work):
        store.fault = lose_the_answer
        with pytest.raises(StorageError, match="no answer"):
            work(store, record)
        assert intact(store.inner, record).place in ((30, 1), (60, 2))
        again = work(store, record)
        assert intact(store.inner, record) == again
        kept = [commit.step for commit in checkpoint.commits(store.inner, record)]
        assert kept == [60, 30, 10]


@pytest.mark.parametrize("keep", [1, 2])
@pytest.mark.parametrize("committed", [False, True])
def test_a_writer_that_wakes_up_fenced_out_neither_commits_nor_takes_what_is_needed(
    tmp_path: Path, keep: int, committed: bool
) -> None:
    """It stands still at each of its requests; another takes over, and commits, before it goes on."""
    holder: list[LeaseRecord] = []

    def work(store: Any, record: LeaseRecord) -> None:
        def check() -> None:
            if holder and holder[0] != record:
                raise RunBusyError("another job writes this run")

        write(store, 60, record.epoch, check)
        check()
        checkpoint.prune(store, record, keep, None)

    def fenced_out(store: Any, record: LeaseRecord) -> None:
        with contextlib.suppress(RunBusyError, StorageError):
            work(store, record)

    for store, record in interruptions(tmp_path, work):
        asleep, wake = threading.Event(), threading.Event()
        store.fault = lambda asleep=asleep, wake=wake: asleep.set() or wake.wait(10)  # type: ignore[misc]
        holder[:] = [record]
        writer = threading.Thread(target=fenced_out, args=(store, record))
        writer.start()
        assert asleep.wait(10)
        holder[0] = begin(record, store.inner)
        base = intact(store.inner, holder[0])
        if committed:
            base = commit_and_prune(store.inner, holder[0], 70, keep)
        wake.set()
        writer.join(10)
        assert intact(store.inner, holder[0]) == base
        holder.clear()
