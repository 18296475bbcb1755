"""What is kept of images in the node's cache: activations by depth, and pixels."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from raycnn.data.dataset import Batch
from raycnn.data.reader import PADDING
from raycnn.storage.cache import Cache, Table

Int64s = npt.NDArray[np.int64]
Array = npt.NDArray[Any]
Part = tuple[Int64s, Int64s]
"""Row ids and the epoch of each."""

Choice = Literal["share", "activations", "pixels"]
"""share: nothing is kept, all that train together use it at once."""

PIXELS: Final = "pixels"
_REASON: Final = "reason"
_REASON_BYTES: Final = 64


class Kept:
    """Tables of the node's cache for the rows of one split.

    That an image could not be read holds for one start of a search, since it may be put right after that.

    Args:
        cache: of this node.
        start: what tells this start of the search from others.
        table: the rows, with key_hash and sha256.
        identity: what a value depends on beside the image and its view, by the name of what is kept.
        blanks: the value of a black image, which stands for one that cannot be read, by the same names.
        random: whether every epoch has views of its own.
    """

    def __init__(
        self, cache: Cache, start: str, table: pa.Table, identity: Mapping[str, str], blanks: Mapping[str, Array],
        *, random: bool,
    ) -> None:  # fmt: skip
        self._cache, self._random = cache, random
        self._blanks = {**blanks, _REASON: np.zeros(_REASON_BYTES, np.uint8)}
        self._identity = {**identity, _REASON: start}
        self._keys = _keys(table, by_name=random)
        self._names = _keys(table, by_name=True)  # of two names of one image one may be missing
        self._tables: dict[tuple[str, int], Table | None] = {}

    @property
    def names(self) -> list[str]:
        """Of what is kept."""
        return [name for name in self._blanks if name != _REASON]

    def usable(self, epochs: Iterable[int]) -> bool:
        """Whether the cache has room for what these epochs need."""
        views = set(epochs) if self._random else {0}
        return all(self._table(name, view) is not None for name in self._blanks for view in views)

    def there(self, parts: Iterable[Part]) -> bool:
        """Whether all of these rows' views are kept, as far as can be told without reading them."""
        for ids, epochs in parts:
            for view, where in self._by_view(ids, epochs):
                wanted = ids[where][~self._failed(ids[where], view)]
                tables = [self._table(name, view) for name in self.names]
                if any(table is None or not table.has(wanted).all() for table in tables):
                    return False
        return True

    def put(self, batch: Batch, ids: Int64s, epochs: Int64s, values: Mapping[str, Array]) -> None:
        """Keep what was found for these rows; equal rows have equal values, whoever writes them."""
        reasons = dict(batch.failures)
        for view, where in self._by_view(ids, epochs):
            bad = np.array([int(row) in reasons for row in ids[where]], bool)
            texts = [reasons[int(row)].encode()[:_REASON_BYTES].ljust(_REASON_BYTES, b"\0") for row in ids[where[bad]]]
            told = np.frombuffer(b"".join(texts), np.uint8).reshape(-1, _REASON_BYTES)
            for name, rows, array in [(_REASON, where[bad], told)] + [(n, where[~bad], a) for n, a in values.items()]:
                table = self._table(name, view)
                if table is not None:
                    table.put(ids[rows], array if name == _REASON else array[rows])

    def get(self, ids: Int64s, epochs: Int64s) -> tuple[Batch, dict[str, Array]] | None:
        """What was put for these rows, with a batch that has no images; None unless all is there and intact."""
        values = {name: np.repeat(self._blanks[name][None], len(ids), axis=0) for name in self.names}
        shown, failures = ids.copy(), []
        for view, where in self._by_view(ids, epochs):
            bad = self._failed(ids[where], view)
            reasons = self._table(_REASON, view)
            if bad.any() and reasons is not None:
                told = reasons.get(ids[where[bad]])[0]
                texts = [bytes(row).rstrip(b"\0").decode(errors="replace") for row in told]
                failures += list(zip(ids[where[bad]].tolist(), texts, strict=True))
            shown[where[bad]] = PADDING
            good = where[~bad]
            for name, array in values.items():
                table = self._table(name, view)
                if table is None:
                    return None
                array[good], valid = table.get(ids[good])
                if not valid.all():
                    return None
        return Batch(np.zeros((0, 1, 1, 3), np.uint8), shown, tuple(failures)), values

    def close(self, epochs: set[int] | None = None) -> None:
        """Let go of all tables but those of these epochs; what the overflow lacks of them goes there."""
        for key in [key for key in self._tables if epochs is None or (self._random and key[1] not in epochs)]:
            table = self._tables.pop(key)
            if table is not None:
                if key[0] != _REASON:
                    self._cache.push(table)
                table.close()

    def _failed(self, ids: Int64s, view: int) -> npt.NDArray[np.bool_]:
        """Which of these rows could not be read in this view."""
        table = self._table(_REASON, view)
        return np.zeros(len(ids), bool) if table is None else table.has(ids)

    def _by_view(self, ids: Int64s, epochs: Int64s) -> Iterator[tuple[int, Int64s]]:
        """Each view among the rows that are none of padding, with their places."""
        views = epochs if self._random else np.zeros_like(epochs)
        for view in np.unique(views[ids != PADDING]):
            yield int(view), np.flatnonzero((views == view) & (ids != PADDING))

    def _table(self, name: str, view: int) -> Table | None:
        key = name, view
        if key not in self._tables:
            identity = f"{self._identity[name]}/{name}/{view if self._random else 'still'}"
            blank = self._blanks[name]
            keys = self._names if name == _REASON else self._keys
            self._tables[key] = self._cache.table(identity, keys, blank.shape, blank.dtype)
        return self._tables[key]


def to_rows(values: Tensor) -> Array:
    """Activations as numpy, one row per image, in the order that they lie in memory: NHWC."""
    values = values.detach().cpu()
    if values.dtype is torch.bfloat16:  # numpy has none
        values = values.view(torch.int16)
    return values.permute(0, 2, 3, 1).numpy() if values.ndim == 4 else values.numpy()


def from_rows(values: Array, dtype: torch.dtype) -> Tensor:
    """The inverse of to_rows: in channels_last where there are channels."""
    tensor = torch.from_numpy(values)
    if dtype is torch.bfloat16:
        tensor = tensor.view(torch.bfloat16)
    return tensor.permute(0, 3, 1, 2) if tensor.ndim == 4 else tensor


def _keys(table: pa.Table, *, by_name: bool) -> npt.NDArray[np.uint8]:
    """What decides a row's pixels, uint8[n, 32]: its bytes and, for random views, its name."""
    keys = np.empty((len(table), 32), np.uint8)
    names = table["key_hash"].to_numpy()
    for place, sha256 in enumerate(table["sha256"].to_pylist()):
        content = sha256 + (int(names[place]).to_bytes(8, "little") if by_name else b"")
        keys[place] = np.frombuffer(hashlib.sha256(content).digest(), np.uint8)
    return keys
