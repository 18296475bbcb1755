"""What is kept of images in the node's cache: activations by depth, pixels, and why an image could not be read."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any, Final

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
Forms = Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]]

PIXELS: Final = "pixels"
REASONS: Final = "reasons"
_REASON_BYTES: Final = 64


class Kept:
    """Tables of the node's cache for the rows of one split.

    Args:
        cache: of this node.
        table: the rows, with key_hash and sha256.
        identity: what a value depends on beside the image and its view, by the name of what is kept.
        forms: shape and dtype of a row, by the same names.
        random: whether every epoch has views of its own.
    """

    def __init__(
        self, cache: Cache, table: pa.Table, identity: Mapping[str, str], forms: Forms, *, random: bool
    ) -> None:
        self._cache, self._identity, self._random = cache, identity, random
        self._forms = {**forms, REASONS: ((_REASON_BYTES,), np.dtype(np.uint8))}
        self._keys = _keys(table, by_name=random)
        self._tables: dict[tuple[str, int], Table | None] = {}

    def there(self, ids: Int64s, epochs: Int64s) -> bool:
        """Whether all of these rows' views are kept."""
        for view, where in self._by_view(ids, epochs):
            for name in self._forms:
                table = self._table(name, view)
                if table is None or not table.has(ids[where]).all():
                    return False
        return True

    def put(self, batch: Batch, ids: Int64s, epochs: Int64s, values: Mapping[str, Array]) -> None:
        """Keep what was found for these rows, readable or not; equal rows have equal values, whoever writes them."""
        reasons = np.zeros((len(ids), _REASON_BYTES), np.uint8)
        failed = dict(batch.failures)
        for place, row in enumerate(ids.tolist()):
            text = failed.get(row, "").encode()[:_REASON_BYTES]
            reasons[place, : len(text)] = np.frombuffer(text, np.uint8)
        for view, where in self._by_view(ids, epochs):
            for name, array in {**values, REASONS: reasons}.items():
                table = self._table(name, view)
                if table is not None:
                    table.put(ids[where], array[where])

    def get(self, ids: Int64s, epochs: Int64s) -> tuple[Batch, dict[str, Array]] | None:
        """What was put for these rows, with a batch that has no images; None unless all is there and intact."""
        values = {name: np.zeros((len(ids), *shape), dtype) for name, (shape, dtype) in self._forms.items()}
        for view, where in self._by_view(ids, epochs):
            for name, array in values.items():
                table = self._table(name, view)
                if table is None:
                    return None
                array[where], valid = table.get(ids[where])
                if not valid.all():
                    return None
        texts = values.pop(REASONS).view(f"S{_REASON_BYTES}").ravel()
        failed = np.flatnonzero(texts != b"")
        failures = tuple((int(ids[place]), texts[place].decode(errors="replace")) for place in failed)
        shown = ids.copy()
        shown[failed] = PADDING
        return Batch(np.zeros((0, 1, 1, 3), np.uint8), shown, failures), values

    @property
    def names(self) -> list[str]:
        """Of what is kept."""
        return list(self._forms)

    def close(self, epochs: set[int] | None = None) -> None:
        """Let go of all tables but those of these epochs; what the overflow lacks of them goes there."""
        for key in [key for key in self._tables if epochs is None or (self._random and key[1] not in epochs)]:
            table = self._tables.pop(key)
            if table is not None:
                self._cache.push(table)
                table.close()

    def _by_view(self, ids: Int64s, epochs: Int64s) -> Iterator[tuple[int, Int64s]]:
        """Each view among the rows that are none of padding, with their places."""
        views = epochs if self._random else np.zeros_like(epochs)
        for view in np.unique(views[ids != PADDING]):
            yield int(view), np.flatnonzero((views == view) & (ids != PADDING))

    def _table(self, name: str, view: int) -> Table | None:
        key = name, view
        if key not in self._tables:
            identity = f"{self._identity[name]}/{name}/{view if self._random else 'still'}"
            self._tables[key] = self._cache.table(identity, self._keys, *self._forms[name])
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
