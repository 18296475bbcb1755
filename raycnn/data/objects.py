"""An object of a store as a file."""

from __future__ import annotations

import io
from typing import Any

from raycnn.storage.base import Reader


class ObjectFile(io.RawIOBase):
    """One object, for reading; every read is a request, so wrap it in a buffer.

    Args:
        reader: the store.
        key: which object.
        size: of it.
    """

    def __init__(self, reader: Reader, key: str, size: int) -> None:
        self._reader, self._key, self._size, self._at = reader, key, size, 0

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Without a request."""
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    def tell(self) -> int:
        """Where the next read begins."""
        return self._at

    def read(self, size: int = -1) -> bytes:
        """As much as there is; without the copies that a raw file makes of what `readinto` gives."""
        left = max(0, self._size - self._at)
        wanted = left if size < 0 else min(size, left)
        data = self._reader.get(self._key, self._at, wanted) if wanted else b""
        self._at += len(data)
        return data

    def readinto(self, buffer: Any) -> int:
        """As `read`."""
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)
