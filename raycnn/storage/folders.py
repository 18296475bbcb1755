"""Folders of the node's cache: made, lengthened, measured and removed; the caller holds the cache's lock."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path

from raycnn.errors import disk_full


class FullError(Exception):
    """What is to be kept does not fit."""


def grow(folder: Path, sizes: Mapping[str, int], keys: bytes | None = None) -> None:
    """Make the folder, or lengthen it, to have files of these sizes; a crash in here changes nothing.

    Raises:
        FullError: the disk has no room.
        OSError: the folder cannot be made.
    """
    is_new = not folder.exists()
    where = folder.with_name(f".{secrets.token_hex(8)}") if is_new else folder
    try:
        where.mkdir(mode=0o700, exist_ok=True)
        for name, num_bytes in sizes.items():
            _allocate(where / name, num_bytes)
        if keys is not None:
            (where / "keys.new").write_bytes(keys)
            (where / "keys.new").replace(where / "keys")
        if is_new:
            where.rename(folder)
    except OSError as error:
        if is_new:
            shutil.rmtree(where, ignore_errors=True)
        if disk_full(error):
            raise FullError("no space left on the disk") from None
        raise


def has_sizes(folder: Path, sizes: Mapping[str, int]) -> bool:
    """Whether the folder has files of these sizes."""
    files = {name: folder / name for name in sizes}
    return all(file.exists() and file.stat().st_size == sizes[name] for name, file in files.items())


def remove(table: Path) -> None:
    """Make a table's folder go, in one step."""
    gone = table.with_name(f".{secrets.token_hex(8)}")  # in one step, so that no half of it is ever found
    with contextlib.suppress(FileNotFoundError):
        table.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)


def in_use(table: Path) -> bool:
    """Whether a process has it open."""
    try:
        with (table / "marks").open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # damaged
        return False
    return False


def last_use(table: Path) -> int:
    """When it was opened last, in nanoseconds."""
    marks = table / "marks"
    return marks.stat().st_mtime_ns if marks.exists() else 0


def size(table: Path) -> int:
    """Bytes of its files."""
    return sum(file.stat().st_size for file in table.iterdir())


def _allocate(path: Path, size: int) -> None:
    with path.open("ab", buffering=0) as file:
        before = os.fstat(file.fileno()).st_size
        try:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
            else:  # macOS: a full disk then shows when rows are put
                file.truncate(max(before, size))
        except OSError:
            file.truncate(before)
            raise
