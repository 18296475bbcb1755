"""A directory as a store: whole files, published by rename, durable before they are visible."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

from raycnn.errors import ObjectNotFound, PreconditionFailed, StorageError, disk_full
from raycnn.storage.base import Entry, check_key
from raycnn.storage.temporary import HIDDEN, claim, sweep, sync, tag, tag_of, temporary

_STALL_S: Final = 1.0  # a compare-and-swap takes a millisecond; one that takes longer may be overtaken


@dataclass(frozen=True)
class LocalStore:
    """The files below `root`, a `Store`. Conditional writes hold among all who write through this class."""

    root: Path

    @property
    def uri(self) -> str:
        """The absolute path."""
        return str(self.root)

    def get(self, key: str, offset: int = 0, length: int | None = None) -> bytes:
        """See Store."""
        path = self._path(key)
        with _errors(path), path.open("rb") as file:
            file.seek(offset)
            return file.read(-1 if length is None else length)

    def stat(self, key: str) -> Entry:
        """See Store."""
        path = self._path(key)
        with _errors(path):
            if path.is_dir():
                raise IsADirectoryError
            return _entry(key, path.stat())

    def put(self, key: str, data: bytes, *, create_only: bool = False, if_etag: str | None = None) -> str:
        """See Store."""
        return self._publish(key, lambda file: file.write(data), len(data), create_only, if_etag)

    def put_file(self, key: str, path: Path, *, create_only: bool = False) -> str:
        """See Store."""
        with _errors(path):
            size = path.stat().st_size
            source = path.open("rb")
        with source:
            return self._publish(key, lambda file: shutil.copyfileobj(source, file), size, create_only, None)

    def folders(self, prefix: str = "") -> list[str]:
        """See Store."""
        start = self._path(prefix) if prefix else self.root
        below = f"{prefix}/" if prefix else ""
        names = (name for name, is_folder in _scan(start) if is_folder)
        return sorted(name for name in names if next(self.list(f"{below}{name}/"), None))

    def list(self, prefix: str = "") -> Iterator[Entry]:
        """See Store."""
        folder = prefix.rpartition("/")[0]
        start = self._path(folder) if folder else self.root
        yield from _walk(start, f"{folder}/" if folder else "", prefix)

    def delete(self, keys: Iterable[str]) -> None:
        """See Store; folders left empty go too, as they do in object storage."""
        for key in keys:
            path = self._path(key)
            with _errors(path):
                path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # not empty, or gone already
                for folder in path.parents:
                    if folder == self.root:
                        break
                    folder.rmdir()

    def sweep(self) -> None:
        """See Store."""
        sweep(self.root)

    def child(self, path: str) -> LocalStore:
        """See Store."""
        return LocalStore(self._path(path))

    def _path(self, key: str) -> Path:
        return self.root / check_key(key)

    def _publish(
        self, key: str, fill: Callable[[IO[bytes]], object], size: int, create_only: bool, if_etag: str | None
    ) -> str:
        target = self._path(key)
        with _errors(target, size):
            with temporary(target.parent, fill) as written:
                if create_only:
                    etag = tag(written.stat())
                    os.link(written, target)  # fails if the target exists
                elif if_etag is None:
                    etag = _replace(written, target)
                else:
                    etag = _swap(written, target, if_etag)
            sync(target.parent)
        return etag


def _entry(key: str, status: os.stat_result) -> Entry:
    return Entry(key, status.st_size, tag(status))


def _replace(written: Path, target: Path) -> str:
    # the clock of a file system ticks in milliseconds: make the new tag differ from the old one by force
    with contextlib.suppress(FileNotFoundError):
        before = target.stat().st_mtime_ns
        if written.stat().st_mtime_ns <= before:
            os.utime(written, ns=(before + 1000, before + 1000))
    etag = tag(written.stat())
    written.replace(target)
    return etag


def _swap(written: Path, target: Path, expected: str) -> str:
    """Replace `target` if its tag is `expected`, without a lock, since its holder might be stopped or dead.

    Writers claim the succession of one tag in turn, with links that only one can create. Who finds a claim that
    nothing comes of removes its claimant's temporary file, after which the claimant can no longer replace
    anything, and takes the next number. So whoever checks the tag and replaces the target is alone in it. Claims
    are removed only when the tag has gone for good.
    """
    passed: list[Path] = []
    for number in itertools.count():
        if tag_of(target) != expected:
            raise FileExistsError
        mine = claim(target, expected, number)
        passed.append(mine)
        try:
            mine.symlink_to(written.name)
            break
        except FileExistsError:
            _overtake(mine, target, expected)
    try:
        if tag_of(target) != expected:
            raise FileExistsError
        return _replace(written, target)
    except FileNotFoundError:  # overtaken
        raise FileExistsError from None
    finally:
        if tag_of(target) != expected:
            for each in passed:
                each.unlink(missing_ok=True)


def _overtake(other: Path, target: Path, expected: str) -> None:
    end = time.monotonic() + _STALL_S
    while time.monotonic() < end and tag_of(target) == expected:
        time.sleep(0.001)
    with contextlib.suppress(FileNotFoundError):
        (other.parent / other.readlink()).unlink()


def _scan(folder: Path) -> list[tuple[str, bool]]:
    """(name, whether a folder) of what lies in a folder, in the order of the keys below."""
    try:
        with os.scandir(folder) as entries:
            found = [(entry.name, entry.is_dir()) for entry in entries if not entry.name.startswith(HIDDEN)]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise _failure(error, folder, None) from None
    return sorted(found, key=lambda pair: pair[0] + "/" * pair[1])


def _walk(folder: Path, below: str, prefix: str, above: tuple[tuple[int, int], ...] = ()) -> Iterator[Entry]:
    found = _scan(folder)
    if not found:
        return
    status = folder.stat()
    here = (status.st_dev, status.st_ino)
    if here in above:  # a link that leads back up
        return
    for name, is_folder in found:
        key = below + name
        if is_folder:
            if f"{key}/".startswith(prefix) or prefix.startswith(f"{key}/"):
                yield from _walk(folder / name, f"{key}/", prefix, (*above, here))
        elif key.startswith(prefix):
            with contextlib.suppress(FileNotFoundError):  # removed since, or a dangling link
                yield _entry(key, (folder / name).stat())


@contextlib.contextmanager
def _errors(path: Path, size: int | None = None) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _failure(error, path, size) from None


def _failure(error: OSError, path: Path, size: int | None) -> StorageError:
    if isinstance(error, FileExistsError) and size is not None:
        return PreconditionFailed(
            "the file is not in the expected state", where=str(path), fix="another writer changed it"
        )
    if isinstance(error, FileNotFoundError | IsADirectoryError | NotADirectoryError) and size is None:
        return ObjectNotFound("no such file", where=str(path), fix="check the path")
    where = str(path) if size is None else f"{path}, {size} bytes"
    if disk_full(error):
        return StorageError(
            "no space left on the disk", where=where, fix="free some space or choose another run.storage"
        )
    reason = error.strerror or type(error).__name__
    return StorageError(
        f"cannot {'read' if size is None else 'write'}: {reason}",
        where=where,
        fix="check path and permissions",
    )
