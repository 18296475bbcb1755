"""A store that fails, stalls, loses acknowledgements, damages bodies: what is tried again, and what it ends with."""

from __future__ import annotations

import json
import time

import pytest

from raycnn.errors import ObjectDamaged, StorageError
from raycnn.storage.lease import KEY, LeaseRecord, acquire
from raycnn.storage.s3 import S3Store
from raycnn.training import checkpoint
from tests.faults.kit.http_faults import Cut, Delay, Fault, Flip, Refuse, Reset, Stall
from tests.faults.kit.operations import OPERATIONS, intact
from tests.faults.kit.proxy import Proxy, Rule
from tests.faults.kit.scenarios import Seen
from tests.support.waiting import wait_for

FAULTS: dict[str, Fault] = {
    "500": Refuse(500),
    "503 SlowDown": Refuse(503, "SlowDown"),
    "delay": Delay(0.05),
    "reset before": Reset(),
    "reset after": Reset(late=True),
}


def write(store: S3Store, step: int) -> checkpoint.Commit:
    files = {name: f"{name} {step}".encode() * 9 for name in ("weights.safetensors", "optimizer.pt", "state.json")}
    return checkpoint.write(store, step, 1, files, {}, guard=lambda: None)


def impatient(store: S3Store, deadline_s: float = 0.5) -> S3Store:
    return S3Store(store.bucket, store.prefix, deadline_s)


@pytest.mark.scenario("S3 errors, resets, stalls")
@pytest.mark.parametrize("kind", FAULTS)
def test_a_third_of_the_requests(kind: str, proxy: Proxy, store: S3Store, seen: Seen) -> None:
    operation = OPERATIONS["commit"]
    operation.prepare(store.uri, "/images")
    proxy.journal.clear()
    proxy.rules = [Rule(FAULTS[kind], count=None, chance=0.33, seed=7)]
    operation.act(store.uri, "/images")
    operation.done(store.uri, "/images")
    assert len(proxy.faults()) > 5
    seen.what = f"a commit and its prune as without, {len(proxy.faults())} of {len(proxy.journal)} requests hit"


@pytest.mark.scenario("S3 errors, resets, stalls")
@pytest.mark.parametrize("late", [False, True])
def test_a_stalled_request_is_given_up_and_sent_again(late: bool, proxy: Proxy, store: S3Store) -> None:
    proxy.rules = [Rule(Stall(late), method) for method in ("PUT", "GET", "HEAD", "DELETE")]
    patient = impatient(store, deadline_s=4.5)  # a third of it for each attempt
    etag = patient.put("a", b"data", create_only=True)
    assert patient.stat("a").etag == etag
    assert patient.get("a") == b"data"
    patient.delete(["a"])
    assert not list(patient.list())
    assert len(proxy.faults()) == 4


@pytest.mark.scenario("S3 errors, resets, stalls")
def test_a_stalled_beat_does_not_lose_the_lease(proxy: Proxy, store: S3Store, seen: Seen) -> None:
    def no_commit(record: LeaseRecord) -> int:
        return -1

    ttl_s = 15.0
    with acquire(store, no_commit, ttl_s=ttl_s, beat_s=0.1) as held:
        stall = Stall()
        proxy.rules = [Rule(stall, "PUT")]
        assert stall.reached.wait(20)
        start, beat = time.monotonic(), json.loads(store.get(KEY))["beat"]
        wait_for(lambda: json.loads(store.get(KEY))["beat"] > beat, "the next beat", ttl_s)
        held.check()
    seen.recovery_s = time.monotonic() - start


@pytest.mark.scenario("S3 down past the deadline")
@pytest.mark.parametrize("nth", [1, 3, 4])
def test_in_the_middle_of_a_commit(nth: int, proxy: Proxy, store: S3Store, seen: Seen) -> None:
    last = write(store, 10)
    proxy.rules = [Rule(Reset(), nth=nth, count=None)]
    with pytest.raises(StorageError, match=r"no answer from 127\.0\.0\.1") as caught:
        write(impatient(store, deadline_s=3), 20)
    assert caught.value.code == 5
    assert caught.value.fix
    attempts = len(proxy.faults())
    assert attempts >= 2, "it was tried again"
    proxy.rules = []
    assert checkpoint.latest(store, None) == last
    seen.what = f"code 5 after {attempts} attempts, the last commit intact"


@pytest.mark.scenario("S3 down past the deadline")
def test_nobody_listens(proxy: Proxy, store: S3Store) -> None:
    last = write(store, 10)
    proxy.down()
    for use in (lambda: write(impatient(store), 20), lambda: checkpoint.latest(impatient(store), None)):
        with pytest.raises(StorageError, match="no answer") as caught:
            use()
        assert caught.value.code == 5
    proxy.up()
    assert checkpoint.latest(store, None) == last


@pytest.mark.scenario("acknowledgement lost on commit")
@pytest.mark.parametrize("key", ["weights.safetensors", "state.json", "MANIFEST.json"])
def test_of_one_file(key: str, proxy: Proxy, store: S3Store) -> None:
    proxy.rules = [Rule(Reset(late=True), "PUT", f"*/{key}", count=2)]
    commit = write(store, 10)
    assert [record.status for record in proxy.journal if record.key.endswith(key)][:3] == [None, None, 412]
    assert checkpoint.latest(store, None) == commit
    assert checkpoint.verified(store, commit)


@pytest.mark.scenario("acknowledgement lost on commit")
def test_until_the_deadline_then_the_same_call_again(proxy: Proxy, store: S3Store, seen: Seen) -> None:
    proxy.rules = [Rule(Reset(late=True), "*", "*/MANIFEST.json", count=None)]
    with pytest.raises(StorageError):
        write(impatient(store), 10)
    proxy.rules = []
    assert checkpoint.latest(store, None) == write(store, 10)
    seen.what = "code 5, and the same call again is success"


@pytest.mark.scenario("clock skew")
def test_the_stores_refusal_says_set_the_clock(proxy: Proxy, store: S3Store, seen: Seen) -> None:
    proxy.rules = [Rule(Refuse(403, "RequestTimeTooSkewed"), count=None)]
    with pytest.raises(StorageError, match=r"this machine's clock is wrong.*fix the clock") as caught:
        store.put("a", b"")
    assert caught.value.code == 5
    assert len(proxy.journal) == 1
    seen.what = f"code 5: {caught.value.what}: {caught.value.fix}; not tried again"


DAMAGE: dict[str, Fault] = {
    "flipped": Flip(5),
    "cut": Cut(5),
    "cut with the right length": Cut(5, honest=True),
}


@pytest.mark.scenario("body truncated, short or flipped")
@pytest.mark.parametrize("kind", DAMAGE)
@pytest.mark.parametrize("file", ["weights.safetensors", "MANIFEST.json"])
def test_of_a_checkpoint(kind: str, file: str, proxy: Proxy, store: S3Store, seen: Seen) -> None:
    before, newest = write(store, 10), write(store, 20)
    proxy.rules = [Rule(DAMAGE[kind], "GET", f"*{newest.name}/{file}")]
    assert checkpoint.latest(store, None) == newest  # read again
    assert len(proxy.faults()) == 1
    proxy.rules = [Rule(DAMAGE[kind], "GET", f"*{newest.name}/{file}", count=None)]
    assert checkpoint.latest(impatient(store), None) == before
    seen.what = "once: read again; always: the checkpoint before"


@pytest.mark.scenario("body truncated, short or flipped")
def test_on_its_way_up(proxy: Proxy, store: S3Store) -> None:
    proxy.rules = [Rule(Flip(5, of_request=True), "PUT", count=2)]
    commit = write(store, 10)
    assert len(proxy.faults()) == 2
    assert checkpoint.verified(store, commit)


def test_a_damaged_object_is_told_as_such(proxy: Proxy, store: S3Store) -> None:
    store.put("a", b"0123456789")
    proxy.rules = [Rule(Flip(5), "GET", count=None)]
    with pytest.raises(ObjectDamaged, match="comes incomplete or damaged"):
        impatient(store).get("a")


@pytest.mark.scenario("checkpoints deleted")
def test_one_of_them(proxy: Proxy, store: S3Store, seen: Seen) -> None:
    OPERATIONS["commit"].prepare(store.uri, "/images")
    newest = intact(store.uri)
    store.delete([entry.key for entry in list(store.list(f"checkpoints/{newest.name}/"))])
    assert intact(store.uri).step == newest.step - 10
    seen.what = "the one before"
