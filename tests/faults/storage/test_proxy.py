"""The proxy does what it is told, and nothing else."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from botocore import exceptions as aws

from raycnn.errors import PreconditionFailed, StorageError
from raycnn.storage.aws import answer, client
from raycnn.storage.s3 import S3Store
from tests.faults.kit.http_faults import Cut, Delay, Fault, Flip, Refuse, Request, Reset, Stall
from tests.faults.kit.proxy import Proxy, Rule

DATA = b"0123456789" * 50


@pytest.fixture
def raw(store: S3Store) -> Callable[..., Any]:
    """One request without any retry: raw("get"), raw("put", data)."""
    store.put("a", DATA)
    at = {"Bucket": store.bucket, "Key": f"{store.prefix}/a"}

    def request(kind: str, data: bytes = b"new") -> Any:
        if kind == "put":
            return client().put_object(**at, Body=data)
        return client().get_object(**at)["Body"].read()

    return request


def test_without_rules_nothing_is_changed(proxy: Proxy, store: S3Store) -> None:
    key = "a/é ?#%+.png"
    etag = store.put(key, DATA, create_only=True)
    with pytest.raises(PreconditionFailed):
        store.put(key, b"", create_only=True)
    assert store.get(key) == DATA
    assert store.get(key, 5, 3) == DATA[5:8]
    assert [(entry.key, entry.etag) for entry in store.list()] == [(key, etag)]
    assert store.stat(key).size == len(DATA)
    store.delete([key])
    full = f"{store.bucket}/{store.prefix}/{key}"
    kinds = [(record.method, record.key, record.status) for record in proxy.journal]
    assert kinds == [
        ("PUT", full, 200), ("PUT", full, 412), ("GET", full, 200), ("GET", full, 206), ("GET", store.bucket, 200),
        ("HEAD", full, 200), ("DELETE", full, 204),
    ]  # fmt: skip
    assert not proxy.faults()


@pytest.mark.parametrize(("status", "code"), [(500, "InternalError"), (503, "SlowDown"), (403, "RequestTimeTooSkewed")])
def test_a_refusal_is_one_of_s3_and_takes_no_effect(proxy: Proxy, raw: Any, status: int, code: str) -> None:
    proxy.rules = [Rule(Refuse(status, code), "PUT")]
    with pytest.raises(aws.ClientError) as caught:
        raw("put")
    assert answer(caught.value) == (status, code)
    assert raw("get") == DATA
    assert proxy.journal[-2].status == status


@pytest.mark.parametrize("late", [False, True])
def test_a_reset_is_before_or_after_the_effect(proxy: Proxy, raw: Any, late: bool) -> None:
    proxy.rules = [Rule(Reset(late), "PUT")]
    with pytest.raises(aws.ConnectionClosedError):
        raw("put")
    assert raw("get") == (b"new" if late else DATA)
    assert proxy.journal[-2].status is None


def test_a_delay_delays(proxy: Proxy, raw: Any) -> None:
    proxy.rules = [Rule(Delay(0.3), "GET")]
    start = time.monotonic()
    assert raw("get") == DATA
    assert time.monotonic() - start >= 0.3


@pytest.mark.parametrize("late", [False, True])
def test_a_stall_lasts_until_it_is_freed(proxy: Proxy, raw: Any, late: bool) -> None:
    stall = Stall(late)
    proxy.rules = [Rule(stall, "PUT")]
    ended: list[Exception] = []

    def put() -> None:
        try:
            raw("put")
        except aws.ConnectionClosedError as error:
            ended.append(error)

    thread = threading.Thread(target=put)
    thread.start()
    assert stall.reached.wait(10)
    assert not ended
    stall.freed.set()
    thread.join(10)
    assert ended
    assert raw("get") == (b"new" if late else DATA)


def test_a_body_is_cut_with_the_wrong_and_with_the_right_length(proxy: Proxy, raw: Any) -> None:
    proxy.rules = [Rule(Cut(100), "GET")]
    with pytest.raises(aws.ResponseStreamingError):
        raw("get")
    proxy.rules = [Rule(Cut(100, honest=True), "GET")]
    with pytest.raises(aws.FlexibleChecksumError):  # the object has a checksum
        raw("get")
    assert raw("get") == DATA


def test_bits_flip_in_answers_and_in_requests(proxy: Proxy, raw: Any, store: S3Store) -> None:
    proxy.rules = [Rule(Flip(7), "GET")]
    assert store.get("a", 0, len(DATA)) == DATA[:7] + b"6" + DATA[8:]  # of a range there is no checksum
    proxy.rules = [Rule(Flip(7, of_request=True), "PUT", count=None)]
    with pytest.raises(StorageError):
        S3Store(store.bucket, store.prefix, deadline_s=0.3).put("a", DATA)
    assert set(proxy.faults()[1:]) == {"Flip(byte=7, of_request=True)"}


def test_down_refuses_and_up_is_the_same_port(proxy: Proxy, raw: Any) -> None:
    proxy.down()
    with pytest.raises((aws.EndpointConnectionError, aws.ConnectionClosedError)):
        raw("get")
    with pytest.raises(aws.EndpointConnectionError):
        raw("get")
    proxy.up()
    assert raw("get") == DATA


def test_rules_choose_by_method_key_and_turn(proxy: Proxy, store: S3Store) -> None:
    fault: Fault = Delay(0)
    proxy.rules = [Rule(fault, "PUT", "*/run/b*", nth=2, count=2)]
    for key in ("a", "b1", "b2", "b3", "b4"):
        store.put(key, b"")
    store.stat("b1")
    hit = [(record.method, record.key[-2:]) for record in proxy.journal if record.fault]
    assert hit == [("PUT", "b2"), ("PUT", "b3")]


def test_chances_are_shares_and_the_same_for_a_seed_in_any_order() -> None:
    requests = [(Request("PUT", f"bucket/{number:03d}", "", b""), turn) for number in range(100) for turn in range(4)]

    def hit(seed: int, order: list[tuple[Request, int]]) -> set[tuple[str, int]]:
        rule = Rule(Reset(), count=None, chance=0.25, seed=seed)
        return {(request.key, turn) for request, turn in order if rule.hits(request, turn)}

    first = hit(1, requests)
    assert 70 <= len(first) <= 130
    assert hit(1, requests[::-1]) == first
    assert hit(2, requests) != first
