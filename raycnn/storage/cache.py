"""Rows of numbers, and bytes of images, kept on a node: had once, read by all its processes and by the next run.

    FOLDER/raycnn-cache-UID/lock      held while a table is opened, fetched or evicted, never while rows are read or put
    FOLDER/raycnn-cache-UID/turns     a byte of it is locked by the process that computes what the byte stands for
    FOLDER/raycnn-cache-UID/TABLE/    TABLE is the sha256 of name, shape and dtype, or of a set of byte strings
        keys                          32 bytes a slot: whose row it holds; replaced by rename, and only ever longer
        rows                          the bytes of the rows, slot by slot, allocated in advance
        marks                         uint64[slots]: 0 or the checksum of key and row; locked by all who have it open;
                                      of byte strings uint8[n]: 0 or 1, for they are checked by their digest
    OVERFLOW/TABLE/PIECE.rows         rows one after the other; PIECE is the sha256 of their keys and of themselves
    OVERFLOW/TABLE/index              the keys of each piece, written last: the sha256 of an npz, and the npz

A row is there if its mark fits, so what a crash, a full disk or a damaged file leaves behind is absent, no more.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import shutil
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from raycnn.errors import RaycnnError
from raycnn.storage.base import Store
from raycnn.storage.blobs import Blobs
from raycnn.storage.folders import FullError, grow, has_sizes, in_use, last_use, remove, size
from raycnn.storage.overflow import fetch, push
from raycnn.storage.table import Table, as_bytes, row_bytes_of

__all__ = ["Blobs", "Cache", "Table"]

_SPARE: Final = 0.05  # share of the disk left alone: Ray stops spilling when it is 95 % full
_DAMAGE: Final = (OSError, ValueError)  # files that are not there or too short, or the folder is not ours

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Cache:
    """Tables below `folder` of this node, at most `limit_bytes` in all; picklable.

    Nothing that is wrong with the folder, the disk or the overflow raises: it is logged, and less is cached.

    Args:
        folder: any existing or new folder; all is kept in one of our own inside it, private to the user.
        limit_bytes: the least recently used tables that nobody has open are evicted before there is more.
        overflow: where `push` keeps tables for other nodes, and `table` looks for rows.
    """

    folder: Path
    limit_bytes: int
    overflow: Store | None = None

    def table(
        self, name: str, keys: npt.NDArray[np.uint8], shape: tuple[int, ...], dtype: npt.DTypeLike
    ) -> Table | None:
        """The table of this name, shape and dtype, with every row that the node or the overflow has.

        Args:
            name: all that decides the rows' values beside what `keys` says.
            keys: uint8[n, 32], the content hash of each row. Rows are found by it, whatever the order; a table grows
                by the keys that it has not seen.
            shape: of one row.
            dtype: of one row; bf16 is kept as uint16.

        Returns:
            None if the table cannot be had or does not fit, or has no rows: compute without it.

        Raises:
            ValueError: `keys` has another shape or dtype.
        """
        if keys.dtype != np.uint8 or keys.ndim != 2 or keys.shape[1] != 32:
            raise ValueError(f"uint8[n, 32] expected, not {keys.dtype} {keys.shape}")
        if not len(keys):
            return None
        shape, dtype = tuple(map(int, shape)), np.dtype(dtype)
        identity = f"{name}\n{shape}\n{dtype.str}"
        folder = self._home / hashlib.sha256(identity.encode()).hexdigest()
        try:
            with self._alone():
                try:
                    table = self._open(folder, keys, shape, dtype)
                except _DAMAGE as error:
                    _log.warning("cache table %s is damaged and made anew: %s", folder.name[:8], error)
                    remove(folder)
                    table = self._open(folder, keys, shape, dtype)
                if self.overflow is not None and not table.complete:
                    with _overflow_errors(self.overflow):
                        fetch(self.overflow.child(table.name), table)
                return table
        except (*_DAMAGE, FullError) as error:
            _log.warning("nothing is cached in %s: %s", self.folder, error)
            return None

    def blobs(self, name: str, lengths: npt.NDArray[np.int64]) -> Blobs | None:
        """Byte strings of these lengths, those of them that are there.

        Args:
            name: of the set; another one with the same name has the same strings in the same order.
            lengths: of each, in bytes.

        Returns:
            None if the set cannot be had or does not fit, or is empty: do without it.
        """
        sizes = {"rows": int(lengths.sum()), "marks": len(lengths)}
        folder = self._home / hashlib.sha256(f"blobs\n{name}".encode()).hexdigest()
        if not sizes["rows"]:
            return None
        try:
            with self._alone():
                if not has_sizes(folder, sizes):
                    remove(folder)
                    if not self._make_room(sum(sizes.values()), folder):
                        raise FullError(f"{sum(sizes.values())} bytes do not fit into {self.limit_bytes} or the disk")
                    grow(folder, sizes)
                return Blobs(folder, lengths)
        except (*_DAMAGE, FullError) as error:
            _log.warning("nothing is cached in %s: %s", self.folder, error)
            return None

    def push(self, table: Table) -> None:
        """Bring to the overflow what it does not have yet of the table's rows."""
        if self.overflow is not None:
            with _overflow_errors(self.overflow):
                push(self.overflow.child(table.name), table)

    @contextlib.contextmanager
    def turn(self, name: str, *, wait: bool) -> Iterator[bool]:
        """True inside if no other process of this node is at `name`; not to be nested.

        With `wait` it is True as soon as the other one has left or died; without a usable folder it is always True.
        """
        place = int.from_bytes(hashlib.sha256(name.encode()).digest()[:6], "little")
        with contextlib.ExitStack() as stack:
            try:
                with self._alone():
                    file = stack.enter_context((self._home / "turns").open("ab"))
                fcntl.lockf(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB), 1, place)
            except BlockingIOError:
                yield False
                return
            except OSError as error:
                _log.warning("no turns are taken in %s: %s", self.folder, error)
            yield True

    @property
    def _home(self) -> Path:
        return self.folder / f"raycnn-cache-{os.getuid()}"

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        self._home.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = self._home.lstat()
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
            raise PermissionError(f"{self._home} is not a folder of this user")
        with (self._home / "lock").open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            for left in self._home.glob(".*"):  # by processes that died in here
                shutil.rmtree(left, ignore_errors=True)
            yield

    def _open(self, folder: Path, keys: npt.NDArray[np.uint8], shape: tuple[int, ...], dtype: np.dtype[Any]) -> Table:
        stored = as_bytes(np.fromfile(folder / "keys", np.uint8).reshape(-1, 32)) if folder.exists() else []
        numbers = {key: slot for slot, key in enumerate(stored)}
        if len(numbers) < len(stored):
            raise ValueError("a key is there twice")
        slots = np.array([numbers.setdefault(key, len(numbers)) for key in as_bytes(keys)], np.int64)
        row_bytes = row_bytes_of(shape, dtype)
        more = (len(numbers) - len(stored)) * (row_bytes + 8 + 32)
        if more and not self._make_room(more, folder):
            if len(set(slots.tolist())) == len(numbers) or in_use(folder):
                raise FullError(f"{more} bytes more do not fit into {self.limit_bytes} or the disk")
            remove(folder)  # it also holds rows that nobody asked for now: without them it may fit
            return self._open(folder, keys, shape, dtype)
        if more:
            sizes = {"rows": len(numbers) * row_bytes, "marks": len(numbers) * 8}
            grow(folder, sizes, keys=b"".join(numbers))
        return Table(folder, keys, slots, shape, dtype)

    def _make_room(self, more: int, keep: Path) -> bool:
        """Evict until `more` bytes fit; if they cannot, evict nothing and give back False."""
        sizes = {table: size(table) for table in self._home.iterdir() if table.is_dir()}
        disk = shutil.disk_usage(self._home)
        excess = max(sum(sizes.values()) + more - self.limit_bytes, int(_SPARE * disk.total) + more - disk.free)
        evicted = []
        for table in sorted(sizes, key=last_use):
            if excess > 0 and table != keep and not in_use(table):
                evicted.append(table)
                excess -= sizes[table]
        if excess > 0:
            return False
        for table in evicted:
            remove(table)
        return True


@contextlib.contextmanager
def _overflow_errors(overflow: Store) -> Iterator[None]:
    try:
        yield
    except (RaycnnError, *_DAMAGE) as error:
        _log.warning("cache: without the rows in %s: %s", overflow.uri, error)
