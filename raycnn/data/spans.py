"""Rows that lie close together in one object, read by one request."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

from raycnn.data.rowgroups import open_rows
from raycnn.errors import ObjectDamaged, ObjectNotFound

Row = dict[str, Any]
_GAP_BYTES: Final = 64 << 10  # read for nothing rather than ask again
_SPAN_BYTES: Final = 1 << 20


class Span:
    """Some rows of a manifest, whose bytes are fetched together when the first of them are wanted.

    Args:
        source: uri that keys are relative to.
        rows: key, offset and length of each, in the order in which they lie.
    """

    def __init__(self, source: str, rows: Sequence[Row]) -> None:
        self._source, self._key, self._start = source, rows[0]["key"], rows[0]["offset"]
        self._stop = max(row["offset"] + row["length"] for row in rows)
        self._data: bytes | None = b"" if len(rows) == 1 else None

    def get(self, row: Row) -> bytes:
        """The bytes of one of the rows; fewer, or none, where it has to be read by itself."""
        if self._data is None:
            try:
                self._data = open_rows(self._source).get(self._key, self._start, self._stop - self._start)
            except (ObjectNotFound, ObjectDamaged):  # what is wrong shows when each is read
                self._data = b""
        at = row["offset"] - self._start
        return self._data[at : at + row["length"]]


def spans(rows: Sequence[Row]) -> Iterator[slice]:
    """Which rows to read together; they are in the order in which they lie."""
    first = 0
    for number in range(1, len(rows) + 1):
        if number == len(rows) or not _together(rows[first], rows[number - 1], rows[number]):
            yield slice(first, number)
            first = number


def _together(first: Row, last: Row, row: Row) -> bool:
    end = row["offset"] + row["length"]
    near = row["offset"] - (last["offset"] + last["length"]) <= _GAP_BYTES
    return bool(row["key"] == first["key"] and near and end - first["offset"] <= _SPAN_BYTES)
