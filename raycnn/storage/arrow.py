"""Reading from whatever else pyarrow.fs knows: gs://, abfs:// and so on."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from pyarrow import ArrowException
from pyarrow import fs as arrow_fs

from raycnn.errors import ConfigError, ObjectNotFound, StorageError
from raycnn.storage.base import Entry, check_key, shown


@dataclass(frozen=True)
class ArrowReader:
    """The files below a uri of pyarrow.fs, read-only; see `Reader`. Size and change time make the etag."""

    address: str = field(repr=False)  # as given: its query may hold settings that nobody should print
    below: str = ""

    def __post_init__(self) -> None:
        self._root  # noqa: B018  a uri that cannot be used is refused here

    @property
    def uri(self) -> str:
        """The uri without user and query."""
        return f"{shown(self.address).rstrip('/')}/{self.below}".rstrip("/")

    def get(self, key: str, offset: int = 0, length: int | None = None) -> bytes:
        """See Reader."""
        filesystem, path = self._path(key)
        try:
            with filesystem.open_input_file(path) as file:
                length = max(file.size() - offset, 0) if length is None else length
                data: bytes = file.read_at(length, offset) if offset < file.size() else b""
                return data
        except (OSError, ArrowException) as error:
            raise self._failure(error, key) from None

    def stat(self, key: str) -> Entry:
        """See Reader."""
        filesystem, path = self._path(key)
        info = self._infos(filesystem, [path], key)[0]
        if info.type != arrow_fs.FileType.File:
            raise ObjectNotFound("no such object", where=f"{self.uri}/{key}", fix="check the key")
        return _entry(key, info)

    def folders(self, prefix: str = "") -> list[str]:
        """See Reader."""
        start = f"{prefix}/" if prefix else ""
        names = {entry.key[len(start) :].partition("/") for entry in self.list(start)}
        return sorted({name for name, slash, _ in names if slash})

    def list(self, prefix: str = "") -> Iterator[Entry]:
        """See Reader; the whole listing is held in memory, since pyarrow gives it in no order."""
        filesystem, root = self._root
        folder = prefix.rpartition("/")[0]
        start = posixpath.join(root, folder)
        selector = arrow_fs.FileSelector(start, recursive=True, allow_not_found=True)
        infos = self._infos(filesystem, selector, folder)
        cut = len(root.rstrip("/")) + 1 if root else 0
        entries = (_entry(info.path[cut:], info) for info in infos if info.type == arrow_fs.FileType.File)
        yield from sorted((entry for entry in entries if entry.key.startswith(prefix)), key=lambda e: e.key)

    def child(self, path: str) -> ArrowReader:
        """See Reader."""
        return ArrowReader(self.address, posixpath.join(self.below, check_key(path)))

    @cached_property
    def _root(self) -> tuple[Any, str]:
        try:
            filesystem, path = arrow_fs.FileSystem.from_uri(self.address)
        except (OSError, ArrowException, ValueError):  # the message would quote the uri
            fix = "use a directory, s3://, gs:// or another scheme of pyarrow.fs"
            raise ConfigError("cannot read this kind of uri", where=shown(self.address), fix=fix) from None
        return filesystem, posixpath.join(path, self.below).rstrip("/")

    def _path(self, key: str) -> tuple[Any, str]:
        filesystem, root = self._root
        return filesystem, posixpath.join(root, check_key(key))

    def _infos(self, filesystem: Any, what: Any, key: str) -> Any:
        try:
            return filesystem.get_file_info(what)
        except (OSError, ArrowException) as error:
            raise self._failure(error, key) from None

    def _failure(self, error: Exception, key: str) -> StorageError:
        where = f"{self.uri}/{key}"
        if isinstance(error, FileNotFoundError):
            return ObjectNotFound("no such object", where=where, fix="check the key")
        kind = getattr(error, "strerror", None) or type(error).__name__
        return StorageError(f"cannot read: {kind}", where=where, fix="check the network and the permissions")


def _entry(key: str, info: Any) -> Entry:
    return Entry(key, info.size, f"{info.mtime_ns or 0:x}-{info.size:x}")
