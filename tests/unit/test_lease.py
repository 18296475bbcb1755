from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raycnn.errors import CheckpointError, RunBusyError
from raycnn.storage import Store, open_store
from raycnn.storage import lease as lease_module
from raycnn.storage.lease import KEY, Lease, LeaseRecord, acquire, adopt, beat, begin_group, check, read_lease
from tests.support.waiting import wait_for

NO_BEAT_S = 3600.0  # a keeper that never beats: every request below is then the test's own
TTL_S = 0.02
LONG_S = 60.0


class Run:
    """A run's store with the commits that its writers make."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.commits: list[tuple[int, int]] = []  # (step, epoch)
        self.leases: list[Lease] = []

    def newest(self, record: LeaseRecord) -> int:
        return max((step for step, epoch in self.commits if record.believes(step, epoch)), default=-1)

    def acquire(self, *, ttl_s: float = TTL_S, beat_s: float = NO_BEAT_S, store: Store | None = None) -> Lease:
        lease = acquire(store or self.store, self.newest, ttl_s=ttl_s, beat_s=beat_s)
        self.leases.append(lease)
        return lease

    def begin(self, lease: Lease, store: Store | None = None) -> LeaseRecord:
        return begin_group(store or self.store, lease.owner, self.newest)

    def record(self) -> dict[str, Any]:
        return json.loads(self.store.get(KEY))

    def crash(self) -> None:
        """What is left when the processes of all jobs so far have died."""
        for lease in self.leases:
            lease.keeper.kill()
            lease.keeper.wait()
            lease.keeper.stdin.close()
        self.leases.clear()


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    run = Run(open_store(str(tmp_path / "run")))
    yield run
    run.crash()


def test_which_commits_a_record_believes() -> None:
    record = LeaseRecord(epoch=4, bases={1: -1, 2: 10, 3: 10, 4: 25})
    assert record.believes(10, 1)
    assert not record.believes(11, 1)  # its writer was fenced out at 10
    assert not record.believes(25, 2)  # epoch 3 began from 10
    assert record.believes(25, 3)
    assert not record.believes(26, 3)
    assert record.believes(10**9, 4)
    assert not record.believes(1, 5)
    assert not LeaseRecord().believes(0, 1)


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), max_size=12))
def test_believed_commits_are_one_growing_history(events: list[tuple[int, bool]]) -> None:
    # Model: the newest epoch commits, or an old one wakes up and commits; then a new epoch begins.
    record, commits, history = LeaseRecord(epoch=1, bases={1: -1}), [], []
    for ahead, stale in events:
        newest = max((step for step, _ in history), default=-1)
        commits.append((newest + 1 + ahead, record.epoch - 1 if stale else record.epoch))
        if not stale:
            history.append(commits[-1])
        assert sorted(c for c in commits if record.believes(*c)) == sorted(history)
        base = max((step for step, _ in history), default=-1)
        record = LeaseRecord(epoch=record.epoch + 1, bases={**record.bases, record.epoch + 1: base})


def test_a_released_lease_is_taken_at_once(run: Run) -> None:
    with run.acquire(ttl_s=LONG_S) as first:
        assert first.epoch == 1
        assert run.record()["bases"] == {"1": -1}
        first.check()
    assert first.lost
    assert run.record()["released"]
    run.commits.append((7, 1))
    with run.acquire(ttl_s=LONG_S) as second:
        assert second.epoch == 2
        assert run.record()["bases"] == {"1": -1, "2": 7}
        with pytest.raises(RunBusyError):
            first.check()
        first.release()  # nothing to give back
        second.check()


def test_a_living_job_is_busy_within_seconds(run: Run) -> None:
    with run.acquire(beat_s=0.1):
        start = time.monotonic()
        with pytest.raises(RunBusyError, match=rf"host .*, pid {os.getpid()}, epoch 1") as caught:
            run.acquire(ttl_s=LONG_S, beat_s=2.0)
        assert time.monotonic() - start < LONG_S
        assert caught.value.code == 6
        assert caught.value.fix


def test_a_silent_job_is_taken_over_when_its_time_is_up(run: Run) -> None:
    run.acquire()
    start = time.monotonic()
    assert run.acquire(ttl_s=0.4, beat_s=0.1).epoch == 2
    assert time.monotonic() - start >= 0.4


def test_a_stopped_owner_is_fenced_out_when_it_wakes(run: Run) -> None:
    old = run.acquire(beat_s=0.1)
    group = run.begin(old)
    run.commits.append((5, group.epoch))
    wait_for(lambda: run.record()["beat"] > 3, "beats")
    os.kill(old.keeper.pid, signal.SIGSTOP)
    os.waitpid(old.keeper.pid, os.WUNTRACED)
    new = run.acquire(ttl_s=0.5)
    run.commits.append((9, group.epoch))  # the old job was in the middle of a commit
    os.kill(old.keeper.pid, signal.SIGCONT)

    with pytest.raises(RunBusyError, match="taken over"):
        old.check()
    with pytest.raises(RunBusyError):
        check(run.store, old.owner, group.epoch)
    with pytest.raises(RunBusyError):
        run.begin(old)
    wait_for(lambda: old.lost, "that it is told")
    assert old.keeper.returncode == RunBusyError.code
    old.release()
    new.check()
    record = check(run.store, new.owner, new.epoch)
    assert record.bases[new.epoch] == 5
    assert run.newest(record) == 5


def test_a_dead_keeper_is_noticed(run: Run) -> None:
    lease = run.acquire()
    lease.keeper.kill()
    wait_for(lambda: lease.lost, "that it is noticed")
    with pytest.raises(RunBusyError, match="keeps the lease has ended"):
        lease.check()


def test_a_killed_job_stops_beating(run: Run) -> None:
    code = (
        "import os, signal, sys; from raycnn.storage import open_store; from raycnn.storage.lease import acquire\n"
        "lease = acquire(open_store(sys.argv[1]), lambda record: -1, beat_s=0.1)\n"
        "print(lease.keeper.pid, flush=True)\n"
        "sys.stdin.readline(); os.kill(os.getpid(), signal.SIGKILL)"
    )
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", code, run.store.uri], stdin=pipe, stdout=pipe) as job:
        keeper = job.stdout.readline().decode().strip()
        wait_for(lambda: run.record()["beat"] > 3, "beats")
        job.communicate(b"\n")
    assert job.returncode == -signal.SIGKILL
    status = Path("/proc", keeper, "status")
    wait_for(lambda: not status.exists() or "State:\tZ" in status.read_text(), "the end of its keeper")
    assert not run.record()["released"]
    assert run.acquire(ttl_s=0.5).epoch == 2


def test_groups_raise_the_epoch_and_count_attempts(run: Run) -> None:
    lease = run.acquire()
    assert [run.begin(lease).attempts for _ in range(3)] == [1, 2, 3]
    run.commits.append((4, 4))
    group = run.begin(lease)
    assert (group.epoch, group.attempts, group.bases[5]) == (5, 1, 4)
    assert run.begin(lease).attempts == 2
    with pytest.raises(RunBusyError, match="newer worker group"):
        check(run.store, lease.owner, group.epoch)
    lease.release()
    with pytest.raises(RunBusyError, match="given up"):
        run.begin(lease)
    # a new job starts counting afresh
    assert run.begin(run.acquire()).attempts == 1


def test_a_group_begins_between_beats_and_the_keeper_adopts_it(run: Run) -> None:
    lease = run.acquire(beat_s=0.02)
    wait_for(lambda: run.record()["beat"] > 3, "beats")
    listings = []

    def slow(record: LeaseRecord) -> int:  # slower than the beats
        listings.append(record.epoch)
        beat = run.record()["beat"]
        wait_for(lambda: run.record()["beat"] > beat + 1, "more beats")
        return -1

    assert begin_group(run.store, lease.owner, slow).epoch == 2
    assert listings == [1]
    beat = run.record()["beat"]
    wait_for(lambda: run.record()["beat"] > beat + 3, "more beats")
    assert run.record()["epoch"] == 2
    lease.check()


def test_a_new_folder_is_adopted_and_adopted_again(run: Run) -> None:
    record = adopt(run.store, "me", run.newest)
    assert (record.owner, record.epoch, record.bases, record.released) == ("me", 1, {1: -1}, False)
    assert check(run.store, "me", 1) == record
    run.commits.append((30, 1))
    begin_group(run.store, "me", run.newest)
    again = adopt(run.store, "me", run.newest)
    assert (again.epoch, again.attempts, again.bases) == (3, 0, {1: -1, 2: 30, 3: 30})
    assert again == read_lease(run.store)


@pytest.mark.parametrize("before", ["beating", "released"])
def test_whoever_had_a_folder_before_is_fenced_out(run: Run, before: str) -> None:
    old = run.acquire()
    run.commits.append((5, old.epoch))
    if before == "released":
        old.release()
    record = adopt(run.store, "me", run.newest)
    assert (record.epoch, record.bases[2]) == (2, 5)
    run.commits.append((9, old.epoch))  # was in the middle of a commit
    assert run.newest(record) == 5
    with pytest.raises(RunBusyError, match="taken over"):
        check(run.store, old.owner, old.epoch)
    with pytest.raises(RunBusyError, match="taken over"):
        beat(run.store, old.owner)
    old.release()
    assert check(run.store, "me", 2) == record


def test_a_folder_may_go_on_from_an_earlier_step_than_its_newest(run: Run) -> None:
    adopt(run.store, "me", run.newest)
    run.commits += [(10, 1), (20, 1)]
    record = adopt(run.store, "me", lambda held: 10)
    assert run.newest(record) == 10
    run.commits.append((15, 2))
    assert run.newest(record) == 15


def test_a_beat_in_between_is_seen_before_the_folder_is_taken(run: Run) -> None:
    old = adopt(run.store, "you", run.newest)
    seen = []

    def newest(held: LeaseRecord) -> int:
        seen.append(held.beat)
        if len(seen) == 1:
            run.commits.append((7, old.epoch))
            beat(run.store, "you")
        return run.newest(held)

    record = adopt(run.store, "me", newest)
    assert seen == [old.beat, old.beat + 1]
    assert (record.owner, record.beat, record.bases[2]) == ("me", old.beat + 2, 7)


@pytest.mark.parametrize("before", ["new", "released", "expired"])
def test_exactly_one_of_two_acquirers_wins(run: Run, before: str) -> None:
    if before != "new":
        lease = run.acquire()
        if before == "released":
            lease.release()
        run.crash()
    gate = threading.Barrier(2)

    def take(_: int) -> Lease | None:
        def newest(record: LeaseRecord) -> int:
            gate.wait(timeout=20)  # both have seen it free before either writes
            return -1

        try:
            return acquire(run.store, newest, ttl_s=TTL_S, beat_s=NO_BEAT_S)
        except RunBusyError:
            return None

    with ThreadPoolExecutor(2) as pool:
        run.leases += [lease for lease in pool.map(take, range(2)) if lease]
    assert len(run.leases) == 1
    run.leases[0].check()


def test_a_damaged_lease_is_told(run: Run) -> None:
    for content in (b"", b"[]", b"{}", b'{"owner": "x", "epoch": 1, "bases": 3}', b"\xff"):
        run.store.put(KEY, content)
        with pytest.raises(CheckpointError, match=r"lease\.json"):
            run.acquire()


class Killed(BaseException):
    """The process is gone."""


class DyingStore:
    """A store whose user dies at one request: before it takes effect, or right after."""

    def __init__(self, store: Store, request: int, *, after: bool) -> None:
        self._store, self._request, self._after = store, request, after
        self.uri, self.num_requests = store.uri, 0

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def request(*args: Any, **kwargs: Any) -> Any:
            self.num_requests += 1
            mine = self.num_requests == self._request
            if mine and not self._after:
                raise Killed
            try:
                return getattr(self._store, name)(*args, **kwargs)
            finally:
                if mine:
                    raise Killed

        return request


def life(run: Run, store: Any) -> None:
    """A whole job: take the lease, two groups with a commit each, leave."""
    lease = run.acquire(store=store)
    for _ in range(2):
        group = run.begin(lease, store)
        check(store, lease.owner, group.epoch)
        run.commits.append((run.newest(group) + 10, group.epoch))
    lease.release()


@pytest.mark.parametrize("before", ["new", "released"])
def test_a_crash_anywhere_leaves_a_lease_that_works(
    tmp_path: Path, before: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # some 70 jobs: keepers that only wait for their end, and start in no time
    monkeypatch.setattr(lease_module, "_KEEPER", ("sh", "-c", "cat"))
    counted = DyingStore(open_store(str(tmp_path / "count")), 0, after=False)
    life(Run(open_store(str(tmp_path / "count"))), counted)
    assert counted.num_requests > 10
    for request in range(1, counted.num_requests + 1):
        for after in (False, True):
            run = Run(open_store(str(tmp_path / f"{request}-{after}")))
            if before == "released":
                life(run, run.store)
            with pytest.raises(Killed):
                life(run, DyingStore(run.store, request, after=after))
            survive(run)


def survive(run: Run) -> None:
    """After a crash the next job gets the lease, believes all that was committed, and fences its writer out."""
    run.crash()
    seen = max([epoch for _, epoch in run.commits], default=0)
    if (Path(run.store.uri) / KEY).exists():
        seen = max(seen, run.record()["epoch"])
    done = max([step for step, _ in run.commits], default=-1)
    with run.acquire() as lease:
        assert lease.epoch > seen
        record = check(run.store, lease.owner, lease.epoch)
        assert run.newest(record) == record.bases[lease.epoch] == done
        run.commits.append((done + 10, seen))  # the dead job's last commit lands late
        assert run.newest(record) == done
        group = run.begin(lease)
        assert group.epoch == lease.epoch + 1
        assert run.newest(group) == group.bases[group.epoch] == done
    assert run.record()["released"]
