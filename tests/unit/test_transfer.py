"""Images on their way to the device ahead of their use. The CUDA calls are stand-ins: their order is what is tested."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch

from raycnn.data.dataset import Batch
from raycnn.training import transfer
from raycnn.training.device import to_device
from raycnn.training.transfer import Transfer, one_ahead

CPU = torch.device("cpu")


def batch(number: int) -> Batch:
    return Batch(np.full((1, 2, 2, 3), number, np.uint8), np.array([number]), ())


def test_one_is_fetched_and_worked_on_while_the_one_before_is_in_use() -> None:
    done = {number: threading.Event() for number in range(4)}
    for number in one_ahead(iter(range(4)), lambda number: done[number].set()):
        assert done[number].is_set()
        if number < 3:
            assert done[number + 1].wait(timeout=60)
        assert not any(done[later].is_set() for later in range(number + 2, 4))


def test_an_error_comes_in_its_place_and_ends_it() -> None:
    def failing() -> Iterator[int]:
        yield from range(2)
        raise OSError("the store is down")

    items = one_ahead(failing(), lambda _: None)
    assert [next(items), next(items)] == [0, 1]
    with pytest.raises(OSError, match="the store is down"):
        next(items)
    items = one_ahead(iter(range(3)), lambda number: 1 // (2 - number))
    assert [next(items), next(items)] == [0, 1]
    with pytest.raises(ZeroDivisionError):
        next(items)


def test_its_thread_ends_with_it() -> None:
    def names() -> list[str]:
        return [thread.name for thread in threading.enumerate()]

    items = one_ahead(iter(range(9)), lambda _: None)
    next(items)
    assert "one ahead" in names()
    items.close()  # type: ignore[attr-defined]
    for thread in threading.enumerate():
        if thread.name == "one ahead":
            thread.join(timeout=60)
    assert "one ahead" not in names()
    assert list(one_ahead(iter(()), lambda _: None)) == []


def test_a_cpu_has_them_where_they_are() -> None:
    way, batches = Transfer(CPU), iter([batch(1)])
    assert way.ahead(batches) is batches
    images = batch(2).images_NHWC
    assert way.take(images).data_ptr() == images.ctypes.data


class Gpu:
    """What of torch.cuda a transfer uses; notes what is asked of it."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.notes: list[str] = []
        patch.setattr(torch.cuda, "Stream", lambda device: self)
        patch.setattr(torch.cuda, "stream", lambda stream: nullcontext(self.notes.append("on the side")))
        patch.setattr(torch.cuda, "current_stream", lambda device: self)
        patch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: self.notes.append("used here"))
        patch.setattr(transfer, "to_device", self.copy)

    def copy(self, images_NHWC: Any, device: torch.device) -> torch.Tensor:
        self.notes.append(f"copy {images_NHWC.flat[0]}")
        return to_device(images_NHWC, CPU)

    def record_event(self) -> str:
        return "event"

    def wait_event(self, event: str) -> None:
        self.notes.append(f"wait for {event}")


def test_a_batch_is_copied_once_and_used_when_it_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = Gpu(monkeypatch)
    way = Transfer(torch.device("cuda"))
    for number, each in enumerate(way.ahead(map(batch, range(3)))):
        gpu.notes.clear()
        assert way.take(each.images_NHWC).eq(number).all()
        assert [note for note in gpu.notes if note in ("wait for event", "used here")] == [
            "wait for event",
            "used here",
        ]
        assert f"copy {number}" not in gpu.notes
    gpu.notes.clear()
    assert way.take(batch(7).images_NHWC).eq(7).all()  # was never sent
    assert gpu.notes == ["copy 7"]


def test_what_nobody_takes_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    Gpu(monkeypatch)
    way = Transfer(torch.device("cuda"))
    assert len(list(way.ahead(map(batch, range(9))))) == 9
    assert len(way._sent) == 2
