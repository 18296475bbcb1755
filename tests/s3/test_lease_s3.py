from __future__ import annotations

import json
import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from raycnn.errors import RunBusyError
from raycnn.storage import Store, open_store
from raycnn.storage.lease import KEY, Lease, LeaseRecord, acquire, begin_group, check
from tests.support.waiting import wait_for


@pytest.fixture
def store(bucket: str) -> Store:
    return open_store(f"s3://{bucket}/storage/run")


def no_commit(record: LeaseRecord) -> int:
    return -1


def test_a_lease_is_kept_given_back_and_taken(store: Store) -> None:
    with acquire(store, no_commit, beat_s=0.2) as first:
        group = begin_group(store, first.owner, no_commit)
        with pytest.raises(RunBusyError, match="another job writes this run"):
            acquire(store, no_commit)
        check(store, first.owner, group.epoch)
        assert json.loads(store.get(KEY))["beat"] > 0
    with acquire(store, lambda record: 5) as second:
        assert second.epoch == 3
        assert check(store, second.owner, 3).bases == {1: -1, 2: -1, 3: 5}


def test_a_stopped_owner_is_fenced_out_when_it_wakes(store: Store) -> None:
    old = acquire(store, no_commit, beat_s=0.2)
    wait_for(lambda: json.loads(store.get(KEY))["beat"] > 1, "beats")
    os.kill(old.keeper.pid, signal.SIGSTOP)
    os.waitpid(old.keeper.pid, os.WUNTRACED)
    with acquire(store, no_commit, ttl_s=1.0) as new:
        os.kill(old.keeper.pid, signal.SIGCONT)
        with pytest.raises(RunBusyError, match="taken over"):
            old.check()
        wait_for(lambda: old.lost, "that it is told")
        assert old.keeper.returncode == RunBusyError.code
        new.check()
        old.release()
        new.check()


def test_exactly_one_of_two_acquirers_wins(store: Store) -> None:
    gate = threading.Barrier(2)

    def take(_: int) -> Lease | None:
        def newest(record: LeaseRecord) -> int:
            gate.wait(timeout=20)
            return -1

        try:
            return acquire(store, newest)
        except RunBusyError:
            return None

    with ThreadPoolExecutor(2) as pool:
        won = [lease for lease in pool.map(take, range(2)) if lease]
    assert len(won) == 1
    won[0].check()
    won[0].release()
