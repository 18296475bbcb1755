"""The way of a rank's images onto its device: on a GPU, while the batch before them computes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, Final, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from raycnn.data.dataset import Batch
from raycnn.training.device import to_device

_ON_THE_WAY: Final = 2

T = TypeVar("T")


class Transfer:
    """Sends the images of a stream one batch ahead of their use, pinned and on a CUDA stream of their own.

    A CPU has them where they are: there it does nothing. What arrives is the same on both.

    Args:
        device: where to.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._side: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._sent: dict[int, tuple[npt.NDArray[np.uint8], Tensor, torch.cuda.Event]] = {}

    def ahead(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The batches, each already on its way when it comes."""
        return batches if self._side is None else one_ahead(batches, self._send)

    def take(self, images_NHWC: npt.NDArray[np.uint8]) -> Tensor:
        """uint8[N, H, W, 3] on the device, sent now unless it was sent ahead."""
        sent = self._sent.pop(id(images_NHWC), None)
        if sent is None:
            return to_device(images_NHWC, self._device)
        _, images, there = sent
        now = torch.cuda.current_stream(self._device)
        now.wait_event(there)
        images.record_stream(now)  # its memory was the side stream's: not to be given away before this one is done
        return images

    def _send(self, batch: Batch) -> None:
        assert self._side is not None
        with torch.cuda.stream(self._side):
            images = to_device(batch.images_NHWC, self._device)
            there = self._side.record_event()
        while len(self._sent) >= _ON_THE_WAY:  # nobody took it
            self._sent.pop(next(iter(self._sent)), None)
        self._sent[id(batch.images_NHWC)] = batch.images_NHWC, images, there


def one_ahead(items: Iterator[T], work: Callable[[T], Any]) -> Iterator[T]:
    """The items, each fetched and worked on in a thread while the one before it is in use.

    What fetching or working raises is raised in the item's place. An iterator that is closed does not wait for the
    thread, which ends by itself.
    """
    asked: SimpleQueue[Future[T | None] | None] = SimpleQueue()

    def serve() -> None:
        while (place := asked.get()) is not None:
            try:
                item = next(items, None)
                if item is not None:
                    work(item)
            except BaseException as error:
                place.set_exception(error)
            else:
                place.set_result(item)

    def ask() -> Future[T | None]:
        place: Future[T | None] = Future()
        asked.put(place)
        return place

    threading.Thread(target=serve, name="one ahead", daemon=True).start()
    try:
        coming = ask()
        while (item := coming.result()) is not None:
            coming = ask()
            yield item
    finally:
        asked.put(None)
