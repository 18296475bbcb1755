"""Rows of a manifest to uint8 images: fetch, verify, decode, crop; one verdict per row."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from raycnn.config import AugmentConfig, DataConfig
from raycnn.data.decode import BadImage, Limits, decode
from raycnn.data.draws import NUM_DRAWS
from raycnn.data.fetch import read_image, threads_for
from raycnn.data.keeping import Keeper, Kept
from raycnn.data.keyed import derive_seed, uniforms
from raycnn.data.rowgroups import open_rows
from raycnn.data.spans import Row, Span, spans
from raycnn.data.transforms import Preprocessing, eval_view, train_view
from raycnn.errors import ObjectDamaged, ObjectNotFound
from raycnn.memory import keep_freed_memory

COLUMNS = ("key", "offset", "length", "sha256", "key_hash", "alias")
"""What of the manifest a reader needs."""

PADDING = -1
"""Row id of a place in a batch that holds no image."""

_DECODES_AT_ONCE: Final = 2  # of the threads of one reader; more than CPUs would only add to its memory


@dataclass(frozen=True)
class Images:
    """What reading some rows gave.

    Attributes:
        images_NHWC: uint8[rows, S, S, 3]. Padding and failed rows are black.
        reasons: per row why it could not be read, "" where it could.
        fetch_s: seconds of the reading in which decoding waited for bytes.
        decode_s: the other seconds of it.
        kept: rows whose bytes this node had.
    """

    images_NHWC: npt.NDArray[np.uint8]
    reasons: list[str]
    fetch_s: float
    decode_s: float
    kept: int = 0


@dataclass(frozen=True)
class ImageReader:
    """How the rows of one source become images.

    Args:
        source: uri that the manifest's keys are relative to.
        preprocessing: the network's.
        limits: what is refused before decoding.
        fetch_threads: objects read from the store at the same time.
        augment: random views; None: the evaluation view.
        seed: the run's seed, for the random views.
        keeper: keeps the bytes of the rows of the one table that is read; None: they are fetched each time.
    """

    source: str
    preprocessing: Preprocessing
    limits: Limits
    fetch_threads: int = 16
    augment: AugmentConfig | None = None
    seed: int = 0
    keeper: Keeper | None = field(default=None, repr=False)

    @classmethod
    def of(cls, data: DataConfig, source: str, preprocessing: Preprocessing, **view: Any) -> ImageReader:
        """With the limits of the data section; `view`: augment and seed, the evaluation view without them."""
        limits = Limits(data.max_pixels, data.max_bytes)
        return cls(source, preprocessing, limits, threads_for(source, data.fetch_threads), **view)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one image as it is read."""
        return (self.preprocessing.image_size, self.preprocessing.image_size, 3)

    def read(self, table: pa.Table, rows: npt.NDArray[np.int64], epochs: npt.NDArray[np.int64]) -> Images:
        """Images of `rows` of `table` as seen in `epochs`.

        Raises:
            StorageError: the store itself failed; a single missing or broken object is a verdict, not an error.
        """
        _keep_freed_memory()
        start, decoders = time.perf_counter(), _Decoders(min(_DECODES_AT_ONCE, self.fetch_threads))
        images_NHWC = np.zeros((len(rows), *self.shape), np.uint8)
        where = np.flatnonzero(rows != PADDING)
        picked = table.take(rows[where])
        order = pc.sort_indices(picked, [("key", "ascending"), ("offset", "ascending")]).to_numpy()
        where, picked = where[order], picked.take(order)  # as they lie
        hashes = picked["key_hash"].to_numpy().astype(np.uint64)
        draws = uniforms(derive_seed(self.seed, "augment"), epochs[where], hashes, NUM_DRAWS)
        reasons, listed = [""] * len(rows), picked.to_pylist()
        kept = self.keeper.open(table) if self.keeper else None

        def fill(span: slice) -> None:
            together = Span(self.source, listed[span])
            for place, row, draws_of_row in zip(where[span], listed[span], draws[span], strict=True):
                try:
                    image = self._image(int(rows[place]), row, together, kept, decoders)
                    with decoders():
                        images_NHWC[place] = self._view(image, draws_of_row)
                except (ObjectNotFound, ObjectDamaged, BadImage) as error:
                    reasons[place] = reason_of(error)

        with ThreadPoolExecutor(self.fetch_threads) as pool:
            list(pool.map(fill, spans(listed)))
        total_s = time.perf_counter() - start
        decode_s = min(decoders.busy_s / decoders.number, total_s)
        return Images(images_NHWC, reasons, total_s - decode_s, decode_s, kept.hits if kept else 0)

    def _image(self, number: int, row: Row, span: Span, kept: Kept | None, decoders: _Decoders) -> Image.Image:
        if kept is not None and (data := kept.get(number, row["sha256"])) is not None:
            with decoders():
                return decode(data, self.limits)
        data, image = open_row(self.source, row, self.limits, decoders, span.get(row))
        if kept is not None:
            kept.put(number, data)
        return image

    def _view(self, image: Image.Image, draws: npt.NDArray[np.float64]) -> npt.NDArray[np.uint8]:
        if self.augment is None:
            return eval_view(image, self.preprocessing)
        return train_view(image, self.preprocessing, self.augment, draws)


class _Decoders:
    """Lets a number of threads decode at the same time, and counts how long they did."""

    def __init__(self, number: int) -> None:
        self.number, self.busy_s = number, 0.0
        self._free, self._lock = threading.Semaphore(number), threading.Lock()

    @contextmanager
    def __call__(self) -> Iterator[None]:
        with self._free:
            start = time.perf_counter()
            try:
                yield
            finally:
                with self._lock:
                    self.busy_s += time.perf_counter() - start


def open_row(
    source: str,
    row: Row,
    limits: Limits,
    decoding: Callable[[], AbstractContextManager[None]] = nullcontext,
    ahead: bytes = b"",
) -> tuple[bytes, Image.Image]:
    """The bytes of one row and the image they are, checked against the index; decoded inside `decoding`.

    Args:
        source: uri that the row's key is relative to.
        row: of a manifest.
        limits: what is refused.
        decoding: entered around the decoding.
        ahead: its bytes as they were read with others'; b"": they are read now.

    Raises:
        ObjectNotFound, ObjectDamaged, BadImage: it cannot be used.
        StorageError: the store itself failed.
    """
    reads = iter([ahead] if ahead else [])

    def fault(data: bytes) -> str:
        if row["sha256"] is None:
            return "" if len(data) == row["length"] else "changed while it was read"
        return "" if hashlib.sha256(data).digest() == row["sha256"] else "changed since it was indexed"

    def read() -> bytes:
        return next(reads, b"") or open_rows(source).get(row["key"], row["offset"], row["length"])

    def open_image(data: bytes) -> Image.Image:
        with decoding():
            return decode(data, limits)

    return read_image(read, fault, open_image)


def reason_of(error: ObjectNotFound | ObjectDamaged | BadImage) -> str:
    """Why `open_row` failed, as it is recorded."""
    if isinstance(error, BadImage):
        return error.reason
    return "missing" if isinstance(error, ObjectNotFound) else "damaged on its way"


_keep_freed_memory = lru_cache(maxsize=1)(keep_freed_memory)  # an image's pages would be cleared anew each time
