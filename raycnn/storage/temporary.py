"""Files on their way into a directory, and what is left of those whose writers were killed.

A writer locks its temporary file; the lock ends with the process however that dies, so what nobody locks is left over.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Final

HIDDEN: Final = ".raycnn-"
"""How the names of temporary files and claims begin; no listing shows them."""

_CLAIM: Final = re.compile(rf"{re.escape(HIDDEN)}(.+)-([0-9a-f]+-[0-9a-f]+)-\d+")


@contextlib.contextmanager
def temporary(folder: Path, fill: Callable[[IO[bytes]], object]) -> Iterator[Path]:
    """A new file in `folder`, made if need be, with its content durable; its name goes when the context ends."""
    file = _locked(folder)
    path = Path(file.name)
    try:
        with file:
            fill(file)
            file.flush()
            os.fsync(file.fileno())
            yield path
    finally:
        path.unlink(missing_ok=True)


def claim(target: Path, tag: str, number: int) -> Path:
    """Where a writer claims to replace the file `target` of this tag, after `number` others."""
    return target.parent / f"{HIDDEN}{target.name}-{tag}-{number}"


def tag(status: os.stat_result) -> str:
    """What changes whenever a file is written."""
    return f"{status.st_mtime_ns:x}-{status.st_size:x}"


def tag_of(path: Path) -> str | None:
    """The tag of the file at `path`, None without one."""
    try:
        return tag(path.stat())
    except FileNotFoundError:
        return None


def sweep(root: Path) -> None:
    """Remove below `root` what killed writers left: temporary files, claims to tags that are gone, empty folders."""
    for folder, _, names in os.walk(root, topdown=False):
        for path in (Path(folder, name) for name in names if name.startswith(HIDDEN)):
            with contextlib.suppress(OSError):  # another one sweeps too
                _remove_left_over(path)
        if Path(folder) != root:
            with contextlib.suppress(OSError):  # not empty
                Path(folder).rmdir()


def sync(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _locked(folder: Path) -> IO[bytes]:
    while True:
        try:
            file = (folder / f"{HIDDEN}{secrets.token_hex(8)}").open("xb")
        except FileNotFoundError:
            _make(folder)
            continue
        with contextlib.suppress(OSError):  # a file system without locks, on which nothing is swept either
            fcntl.flock(file, fcntl.LOCK_EX)
        if os.fstat(file.fileno()).st_nlink:
            return file
        file.close()  # swept before it was locked


def _make(folder: Path) -> None:
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    for path in reversed(missing):
        path.mkdir(exist_ok=True)
        sync(path.parent)


def _remove_left_over(path: Path) -> None:
    if path.is_symlink():
        claimed = _CLAIM.fullmatch(path.name)
        if claimed and tag_of(path.parent / claimed[1]) != claimed[2]:
            path.unlink()
        return
    with path.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink()
