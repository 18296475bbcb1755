from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager
from queue import SimpleQueue
from threading import Event

import pytest

from raycnn import cluster
from raycnn.errors import ConfigError, DataError
from raycnn.opening import while_ray_starts

Connect = Callable[..., object]


@pytest.fixture
def slow_ray(monkeypatch: pytest.MonkeyPatch) -> Event:
    """In the place of Ray, what is there once the event is set."""
    set_off = Event()

    @contextmanager
    def connect(address: str, *, verbose: bool) -> Iterator[None]:
        assert set_off.wait(10)
        if address == "nowhere":
            raise ConfigError("no Ray cluster answers", where=address, fix="start it")
        yield

    monkeypatch.setattr(cluster, "connect", connect)
    return set_off


def test_work_goes_on_while_ray_starts_and_waits_for_it_where_it_needs_it(slow_ray: Event) -> None:
    told: list[str] = []

    def work(ray: Callable[[], None]) -> str:
        told.append("before")
        slow_ray.set()  # Ray does not start before: nothing came of it if they took turns
        ray()
        told.append("after")
        return "done"

    with while_ray_starts(work, "local", verbose=False, torch=False) as found:
        assert (found, told) == ("done", ["before", "after"])


def test_who_waits_for_a_ray_that_does_not_start_ends_with_it(slow_ray: Event) -> None:
    ended: SimpleQueue[type] = SimpleQueue()

    def work(ray: Callable[[], None]) -> None:
        slow_ray.set()
        try:
            ray()
        except CancelledError as error:
            ended.put(type(error))
            raise

    with (
        pytest.raises(ConfigError, match="no Ray cluster"),
        while_ray_starts(work, "nowhere", verbose=False, torch=False),
    ):
        pass
    assert ended.get(timeout=10) is CancelledError


def test_what_fails_meanwhile_is_raised(slow_ray: Event) -> None:
    def work(ray: Callable[[], None]) -> None:
        slow_ray.set()
        raise DataError("no images", where="here", fix="add some")

    with pytest.raises(DataError, match="no images"), while_ray_starts(work, "local", verbose=False, torch=False):
        pass
