"""One writer per run: a lease in the run's store, changed by compare-and-swap only, that fences old writers out.

Every change of holder or of worker group raises the epoch and notes its base, the newest commit believed at that
moment. What an older epoch's writer commits beyond a later base is never believed, whenever it wakes up. No two
machines' clocks are compared: a lease has expired when its beat stood still for `ttl_s` of the observer's own clock.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from raycnn.errors import CheckpointError, ObjectNotFound, PreconditionFailed, RunBusyError, StorageError
from raycnn.storage.base import Store, parse_json

KEY: Final = "lease.json"
FORMAT: Final = 1
_KEEPER: Final = (sys.executable, "-P", "-m", "raycnn.storage.keeper")

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LeaseRecord:
    """What lease.json says."""

    owner: str = ""
    """host/pid/random of the holder's process."""
    epoch: int = 0
    """Raised by every change of holder and every start of a worker group."""
    beat: int = 0
    """Raised by the holder every few seconds."""
    attempts: int = 0
    """Starts of worker groups by this holder since a commit last moved the base."""
    bases: dict[int, int] = field(default_factory=dict)
    """bases[e]: step of the newest commit believed when epoch e began; -1: none."""
    released: bool = True
    """Nobody holds it."""

    def believes(self, step: int, epoch: int) -> bool:
        """Whether a commit of this step and epoch counts: no later epoch began from an earlier step."""
        later = (base for begun, base in self.bases.items() if begun > epoch)
        return epoch <= self.epoch and all(step <= base for base in later)


class Lease:
    """A lease held by this process. A keeper process beats for it until `release`, or until this process dies.

    Attributes:
        owner: what `begin_group` and `check` want to know.
        epoch: the epoch it was taken with.
        keeper: the process that beats.
    """

    def __init__(self, store: Store, record: LeaseRecord, beat_s: float) -> None:
        self.owner, self.epoch, self._store = record.owner, record.epoch, store
        # its own session, so that a Ctrl-C does not reach it; it leaves when its stdin closes
        root = str(Path(__file__).parents[2])
        path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
        self.keeper = subprocess.Popen(
            [*_KEEPER, store.uri, self.owner, str(beat_s)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            env=os.environ | {"PYTHONPATH": path},
            start_new_session=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.release()
        except StorageError as failure:  # it expires by itself
            _log.warning("could not release the run: %s", failure)

    @property
    def lost(self) -> bool:
        """Whether the keeper has ended: another job has taken over, or nobody beats any more."""
        return self.keeper.poll() is not None

    def check(self) -> None:
        """Read the store once; raise RunBusyError unless this process holds the lease and its keeper beats."""
        _held(read_lease(self._store), self.owner, self._store)
        if self.lost:
            what = f"the process that keeps the lease has ended with {self.keeper.returncode}"
            raise RunBusyError(what, where=self._store.uri, fix="run the same command again")

    def release(self) -> None:
        """End the keeper and mark the lease free; nothing if another job has taken over."""
        assert self.keeper.stdin is not None
        self.keeper.stdin.close()
        try:
            self.keeper.wait(timeout=2)
        except subprocess.TimeoutExpired:  # in the middle of a slow request, or stopped
            self.keeper.kill()
            self.keeper.wait()
        try:
            _change(self._store, lambda old: replace(_held(old, self.owner, self._store), released=True))
        except RunBusyError:
            return


def acquire(
    store: Store, newest_step: Callable[[LeaseRecord], int], *, ttl_s: float = 15.0, beat_s: float = 2.0
) -> Lease:
    """Take the lease of a run, at once if it is new or free, or after its beat stood still for `ttl_s`.

    Args:
        store: the run's store.
        newest_step: step of the newest commit that a record believes, -1 for none. For a run without a lease it
            gets the empty record of epoch 0, which believes nothing.
        ttl_s: how long a beat must stand still.
        beat_s: time between two beats of our own.

    Raises:
        RunBusyError: another job holds it: its beat moves.
        StorageError: the store cannot be used.
    """
    owner = f"{socket.gethostname()}/{os.getpid()}/{secrets.token_hex(4)}"
    alive = False
    while True:
        old, etag = _read(store)
        if not old.released:
            if alive:
                fix = "wait for it, stop it, or choose another run.name"
                raise RunBusyError(f"another job writes this run: {_who(old)}", where=store.uri, fix=fix)
            if not _stands_still(store, etag, ttl_s, poll_s=min(ttl_s, beat_s) / 4):
                alive = True
                continue
        epoch = old.epoch + 1
        bases = {**old.bases, epoch: newest_step(old)}
        new = LeaseRecord(owner, epoch, old.beat + 1, attempts=0, bases=bases, released=False)
        try:
            _write(store, new, etag)
        except PreconditionFailed:  # another job was faster
            alive = True
            continue
        return Lease(store, new, beat_s)


def begin_group(store: Store, owner: str, newest_step: Callable[[LeaseRecord], int]) -> LeaseRecord:
    """Raise the epoch for a new worker group of the same holder; rank 0 calls this at each start.

    Args:
        store: the run's store.
        owner: the `Lease.owner` of the job.
        newest_step: as for `acquire`.

    Returns:
        The record now in force; its epoch names this group's commits, its base is the step to resume from.

    Raises:
        RunBusyError: `owner` does not hold the lease.
    """
    steps: dict[int, int] = {}  # a beat between reading and writing must not cost another listing

    def begin(old: LeaseRecord) -> LeaseRecord:
        _held(old, owner, store)
        if old.epoch not in steps:
            steps[old.epoch] = newest_step(old)
        base = steps[old.epoch]
        attempts = old.attempts + 1 if base == old.bases.get(old.epoch) else 1
        return replace(old, epoch=old.epoch + 1, attempts=attempts, bases={**old.bases, old.epoch + 1: base})

    return _change(store, begin)


def adopt(store: Store, owner: str, newest_step: Callable[[LeaseRecord], int]) -> LeaseRecord:
    """Take the lease of a folder that belongs to a run whose lease `owner` holds, whoever had it before.

    Args:
        store: the folder's store.
        owner: the `Lease.owner` of the job that holds the run.
        newest_step: as for `acquire`.

    Returns:
        The record now in force; its epoch names this job's commits there, its base is the step to resume from.
    """

    def take(old: LeaseRecord) -> LeaseRecord:
        bases = {**old.bases, old.epoch + 1: newest_step(old)}
        return LeaseRecord(owner, old.epoch + 1, old.beat + 1, attempts=0, bases=bases, released=False)

    return _change(store, take)


def beat(store: Store, owner: str) -> None:
    """Show that the holder lives, whatever the epoch; RunBusyError if `owner` no longer holds the lease."""
    _change(store, lambda old: replace(_held(old, owner, store), beat=old.beat + 1))


def check(store: Store, owner: str, epoch: int) -> LeaseRecord:
    """The record in force, if it is this owner's and of this epoch (one read of the store).

    Raises:
        RunBusyError: another job, or a newer worker group of the same job, holds the lease.
    """
    record = _held(read_lease(store), owner, store)
    if record.epoch != epoch:
        what = f"a newer worker group has begun (epoch {record.epoch}, this one is {epoch})"
        raise RunBusyError(what, where=store.uri, fix="nothing to do: the newer one goes on")
    return record


def _held(record: LeaseRecord, owner: str, store: Store) -> LeaseRecord:
    if record.owner == owner and not record.released:
        return record
    what = "the lease of this run has been given up" if record.released else f"taken over by {_who(record)}"
    raise RunBusyError(what, where=store.uri, fix="this job may not write any more; see the other one")


def _who(record: LeaseRecord) -> str:
    host, _, rest = record.owner.partition("/")
    return f"host {host}, pid {rest.partition('/')[0]}, epoch {record.epoch}"


def _stands_still(store: Store, etag: str | None, ttl_s: float, poll_s: float) -> bool:
    _log.info("waiting %.0f s to see whether the job that holds %s still lives", ttl_s, store.uri)
    start = time.monotonic()
    while True:
        time.sleep(poll_s)
        before = time.monotonic()  # what is seen below was so at this moment or later
        if _tag(store) != etag:
            return False
        if before - start >= ttl_s:
            return True


def _change(store: Store, change: Callable[[LeaseRecord], LeaseRecord]) -> LeaseRecord:
    while True:
        record, etag = _read(store)
        new = change(record)
        try:
            _write(store, new, etag)
        except PreconditionFailed:  # a beat came between
            continue
        return new


def _tag(store: Store) -> str | None:
    try:
        return store.stat(KEY).etag
    except ObjectNotFound:
        return None


def _read(store: Store) -> tuple[LeaseRecord, str | None]:
    # the tag first: if the content changes in between, the write that trusts this tag fails
    etag = _tag(store)
    return read_lease(store), etag


def read_lease(store: Store) -> LeaseRecord:
    """The lease of a run as it stands; for a run without one the empty record of epoch 0.

    Raises:
        CheckpointError: lease.json is not a lease.
    """
    try:
        tree = parse_json(store.get(KEY))
        if (newer := tree.get("format", 1)) > FORMAT:
            what = f"a lease of format {newer}, and this raycnn reads formats up to {FORMAT}"
            raise CheckpointError(what, where=f"{store.uri}/{KEY}", fix="use a newer raycnn")
        bases = {int(epoch): int(step) for epoch, step in tree["bases"].items()}
        numbers = {name: int(tree[name]) for name in ("epoch", "beat", "attempts")}
        return LeaseRecord(owner=str(tree["owner"]), released=bool(tree["released"]), bases=bases, **numbers)
    except ObjectNotFound:
        return LeaseRecord()
    except (ValueError, KeyError, TypeError, AttributeError):
        where = f"{store.uri}/{KEY}"
        raise CheckpointError("not a lease", where=where, fix="restore the file: commits count by it") from None


def _write(store: Store, record: LeaseRecord, etag: str | None) -> None:
    # the nonce makes every content, and so every tag, unique
    tree = {"format": FORMAT, **asdict(record), "nonce": secrets.token_hex(4)}
    store.put(KEY, json.dumps(tree).encode(), create_only=etag is None, if_etag=etag)
