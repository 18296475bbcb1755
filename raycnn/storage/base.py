"""Bytes in and out of object storage and directories: what a store can do, and how one is opened."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol
from urllib.parse import unquote, urlsplit

from raycnn.errors import ConfigError, StorageError
from raycnn.secrecy import has_credentials

_BUCKET: Final = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")


@dataclass(frozen=True, slots=True)
class Entry:
    """One object: key relative to the store's root, size in bytes, a tag that changes with the content."""

    key: str
    size: int
    etag: str


class Reader(Protocol):
    """Read access to the objects below one root. Thread-safe, picklable; errors are of `raycnn.errors`."""

    @property
    def uri(self) -> str:
        """The root in canonical form, never with a secret: s3://bucket/prefix or /abs/dir."""

    def get(self, key: str, offset: int = 0, length: int | None = None) -> bytes:
        """The object's bytes [offset, offset + length); fewer where it ends before that.

        Raises:
            ObjectNotFound: there is no such object.
            StorageError: the store refused, or did not answer within the deadline.
        """

    def stat(self, key: str) -> Entry:
        """Size and tag of one object; errors as `get`."""

    def folders(self, prefix: str = "") -> list[str]:
        """Names of the folders directly below the folder `prefix` ("" is the root), sorted.

        A folder is what has objects below it; some servers show one for a while after its last object went.
        """

    def list(self, prefix: str = "") -> Iterator[Entry]:
        """All objects whose key starts with the string `prefix`, as a stream; nothing where nothing is.

        Sorted by key, as far as the server does it: SeaweedFS sorts folder by folder ("a/b" before "a-b").
        """

    def child(self, path: str) -> Reader:
        """The reader whose root is the folder `path` of this one."""


class Store(Reader, Protocol):
    """Read and write access to the objects below one root."""

    def put(self, key: str, data: bytes, *, create_only: bool = False, if_etag: str | None = None) -> str:
        """Write one whole object, visible only when complete and durable; gives back its etag.

        Args:
            key: where to write.
            data: the content.
            create_only: only if the key does not exist yet.
            if_etag: only if the object there now has this tag (compare and swap).

        Raises:
            PreconditionFailed: `create_only` or `if_etag` found another state.
            StorageError: the store refused, is full, or did not answer within the deadline.
        """

    def put_file(self, key: str, path: Path, *, create_only: bool = False) -> str:
        """As `put`, with a local file's content, never all of it in memory."""

    def delete(self, keys: Iterable[str]) -> None:
        """Remove objects, in the order given; a missing one is no error."""

    def sweep(self) -> None:
        """Remove what killed writers left that no listing shows, where that harms no other writer.

        A directory: temporary files. S3 has nothing to remove here: parts of an upload that never ended go when the
        same key is written in parts again.
        """

    def child(self, path: str) -> Store:
        """The store whose root is the folder `path` of this one."""


def open_store(uri: str, *, deadline_s: float = 60.0) -> Store:
    """The store at s3://bucket/prefix, a directory, or file:///directory. Sends no request.

    Args:
        uri: where.
        deadline_s: longest time one operation is retried for.

    Raises:
        ConfigError: a uri that cannot be a store.
    """
    scheme = _scheme(uri)
    if scheme == "s3":
        from raycnn.storage.s3 import S3Store  # boto3 takes a third of a second to import

        return S3Store(*_bucket_and_prefix(uri), deadline_s)
    if scheme in ("", "file"):
        from raycnn.storage.local import LocalStore

        path = unquote(urlsplit(uri).path) if scheme else uri
        if not path or "\0" in path:
            raise ConfigError("not a directory path", where=shown(uri), fix="use /a/directory or s3://bucket/prefix")
        return LocalStore(Path(path).expanduser().absolute())
    raise ConfigError(
        "cannot write to this kind of storage", where=shown(uri), fix="use s3://bucket/prefix or a directory"
    )


def open_images(uri: str) -> Reader:
    """As `open_store`, and gs:// and the other schemes that pyarrow.fs knows; read-only.

    Raises:
        ConfigError: a uri that nothing here can read.
    """
    scheme = _scheme(uri)
    if scheme == "s3":
        from raycnn.storage.images import S3Images

        return S3Images(*_bucket_and_prefix(uri))
    if scheme in ("", "file"):
        return open_store(uri)
    from raycnn.storage.arrow import ArrowReader

    return ArrowReader(uri)


def _bucket_and_prefix(uri: str) -> tuple[str, str]:
    parts = urlsplit(uri.replace("?", "%3F").replace("#", "%23"))
    if not _BUCKET.fullmatch(parts.netloc):
        raise ConfigError("not a bucket name", where=shown(uri), fix="use s3://bucket/prefix")
    return parts.netloc, uri.removeprefix(f"{uri[:2]}://{parts.netloc}").strip("/")


def check_key(key: str) -> str:
    """The key itself, if it is a plain relative path that stays below its root.

    Raises:
        StorageError: an empty, absolute or climbing key, or one with NUL.
    """
    if not key or "\0" in key or any(part in ("", ".", "..") for part in key.split("/")):
        raise StorageError("not a usable key", where=repr(key), fix="use a relative path without '..'")
    return key


def parse_json(data: bytes) -> Any:
    """JSON that lay in a store; ValueError for all that is none, however deep."""
    try:
        return json.loads(data)
    except RecursionError:
        raise ValueError("nested too deep") from None


def shown(uri: str) -> str:
    """The uri without user, password and query, fit for messages."""
    scheme, mark, rest = uri.partition("://")
    if not mark:
        return uri
    host, slash, path = rest.partition("/")
    return f"{scheme}://{host.rpartition('@')[2].partition('?')[0]}{slash}{path.partition('?')[0]}"


def _scheme(uri: str) -> str:
    scheme, mark, _ = uri.partition("://")
    if has_credentials(uri):
        raise ConfigError(
            "credentials in a uri",
            where=shown(uri),
            fix="remove them; they come from the environment or a profile",
        )
    return scheme.lower() if mark else ""
