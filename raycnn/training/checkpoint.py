"""The commit protocol: a checkpoint exists when its MANIFEST.json exists, and nothing else is believed.

    checkpoints/step-00001200.e003/{weights.safetensors, optimizer.pt, state.json, ..., MANIFEST.json}

The manifest is put last and create-only, with size and sha256 of every file. No object is ever overwritten.
The name carries the lease's epoch, so a new worker group never meets what an older one left half-written.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, Literal, TypeVar

from raycnn.errors import CheckpointError, ObjectDamaged, ObjectNotFound, PreconditionFailed
from raycnn.storage.base import Entry, Store
from raycnn.storage.lease import LeaseRecord
from raycnn.training.commit import (
    FOLDER,
    FORMAT,
    MANIFEST,
    Commit,
    Place,
    decode_manifest,
    encode_manifest,
    parse_key,
)

__all__ = ["Commit", "best", "commits", "latest", "newest_step", "prune", "verified", "write"]

_READS: Final = 3  # bytes flipped on their way are right the next time; those flipped in the store stay so
_LISTINGS: Final = 20
_MANIFEST_BYTES: Final = 16 << 20

log = logging.getLogger(__name__)
T = TypeVar("T")
Folders = dict[Place, dict[str, Entry]]


def write(
    store: Store,
    step: int,
    epoch: int,
    files: Mapping[str, bytes],
    facts: Mapping[str, Any],
    *,
    guard: Callable[[], None],
) -> Commit:
    """Commit a checkpoint; the same call again, after an acknowledgement was lost, succeeds.

    Args:
        store: the run's store.
        step: global steps done.
        epoch: the lease epoch of this writer.
        files: content by file name.
        facts: further entries of the manifest, as JSON values (samples_seen, identity, metrics, ...).
        guard: raises if the lease is lost; called when the files lie there and the manifest does not yet.

    Raises:
        CheckpointError: an object of this name has another content.
        StorageError: the store refused or did not answer.
    """
    place = Place(step, epoch)
    listed: dict[str, dict[str, Any]] = {}
    for name, data in files.items():
        etag = _put_once(store, place.key(name), data)
        listed[name] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest(), "etag": etag}
    data = encode_manifest({**facts, "format": FORMAT, "step": step, "epoch": epoch, "files": listed})
    guard()
    _put_once(store, place.key(MANIFEST), data)
    return decode_manifest(data, place)


def commits(store: Store, record: LeaseRecord | None) -> list[Commit]:
    """All commits with a readable manifest, newest first by (step, epoch); their files are not looked at.

    Args:
        store: the run's store.
        record: the lease, which tells the commits of fenced-out writers; None believes all.

    Raises:
        CheckpointError: a manifest is of a newer format.
    """

    def look() -> list[Commit]:
        folders = _folders(store)
        found = (_read(store, place, folders[place]) for place in _committed(folders, record))
        return [commit for commit in found if commit is not None]

    return _while_pruned(look)


def latest(store: Store, record: LeaseRecord | None) -> Commit | None:
    """The newest commit whose every file verifies; None if there is none at all.

    A broken one is skipped with a warning that names it.

    Raises:
        CheckpointError: there are commits but all of them are broken, or one met is of a newer format.
    """

    def look() -> Commit | None:
        folders = _folders(store)
        places = _committed(folders, record)
        for place in places:
            commit = _read(store, place, folders[place])
            if commit is not None and _intact(store, commit):
                return commit
        if places:
            fix = "restore the files from a backup, or train under another run.name"
            raise CheckpointError("no checkpoint of the run is intact", where=f"{store.uri}/{FOLDER}", fix=fix)
        return None

    return _while_pruned(look)


def newest_step(store: Store, record: LeaseRecord) -> int:
    """Step of the newest valid checkpoint that the lease believes, -1 without one."""
    commit = latest(store, record)
    return commit.step if commit else -1


def verified(store: Store, commit: Commit, names: Iterable[str] | None = None) -> dict[str, bytes]:
    """The content of the named files (default: all of the commit's), size and sha256 checked.

    Raises:
        CheckpointError: a file is missing, or is not what the manifest says.
    """
    listed = commit.manifest["files"]
    chosen = listed if names is None else names
    return {name: _verify(store, commit.place.key(name), listed.get(name)) for name in chosen}


def best(found: Iterable[Commit], metric: str, mode: Literal["max", "min"]) -> Commit | None:
    """The commit with the best value of a metric among those evaluated; of equal ones the earliest."""
    sign = -1.0 if mode == "max" else 1.0
    evaluated = [c for c in found if (c.manifest.get("metrics") or {}).get(metric) is not None]
    return min(evaluated, key=lambda c: (sign * c.manifest["metrics"][metric], c.place), default=None)


def prune(store: Store, record: LeaseRecord, keep: int, best: Commit | None) -> None:
    """Delete what is no longer needed; nothing else deletes a run's checkpoints.

    The newest `keep` intact commits stay, `best`, what this epoch has half-written, and all of later epochs.
    Older commits go, manifests first; so does what older epochs left without a manifest or beyond the base.

    Args:
        store: the run's store.
        record: the lease, read after the newest commit was written: whoever takes over believes that commit.
        keep: at least 1.
        best: stays whatever its age.
    """
    doomed = _while_pruned(lambda: _doomed(store, record, keep, best))
    store.delete([entry.key for files in doomed for name, entry in files.items() if name == MANIFEST])
    store.delete([entry.key for files in doomed for name, entry in files.items() if name != MANIFEST])


def _doomed(store: Store, record: LeaseRecord, keep: int, best: Commit | None) -> list[dict[str, Entry]]:
    folders = _folders(store)
    committed = _committed(folders, record)
    oldest = _oldest_kept(store, folders, committed, keep)
    old = {place for place in committed if oldest is not None and place < oldest}
    left_over = {place for place in folders if place.epoch < record.epoch} - set(committed)
    return [folders[place] for place in sorted((old | left_over) - ({best.place} if best else set()))]


def _oldest_kept(store: Store, folders: Folders, committed: Iterable[Place], keep: int) -> Place | None:
    """The `keep`-th newest intact commit; None if there are fewer."""
    for place in committed:
        commit = _read(store, place, folders[place])
        if commit is not None and (_untouched(commit, folders[place]) or _intact(store, commit)):
            keep -= 1
            if keep == 0:
                return place
    return None


def _folders(store: Store) -> Folders:
    """What lies in each checkpoint's folder, complete or not."""
    folders: Folders = {}
    for entry in store.list(f"{FOLDER}/"):
        parsed = parse_key(entry.key)
        if parsed is not None:
            folders.setdefault(parsed[0], {})[parsed[1]] = entry
    return folders


def _committed(folders: Folders, record: LeaseRecord | None) -> list[Place]:
    """Where there is a manifest that may be believed, newest first."""
    with_manifest = (place for place, files in folders.items() if MANIFEST in files)
    return sorted((p for p in with_manifest if record is None or record.believes(*p)), reverse=True)


def _put_once(store: Store, key: str, data: bytes) -> str:
    try:
        return store.put(key, data, create_only=True)
    except PreconditionFailed:
        if store.get(key) != data:
            fix = "run the same command again; each start writes under a new name"
            raise CheckpointError("the checkpoint has another content there", where=key, fix=fix) from None
        return store.stat(key).etag


def _read(store: Store, place: Place, files: Mapping[str, Entry]) -> Commit | None:
    """The commit, or None, with a warning, if its manifest is broken."""
    try:
        if files[MANIFEST].size > _MANIFEST_BYTES:
            raise ValueError(f"{files[MANIFEST].size} bytes")
        return decode_manifest(store.get(place.key(MANIFEST)), place)
    except (ValueError, ObjectDamaged) as error:
        log.warning("skipping checkpoint %s: its %s is broken: %s", place.name, MANIFEST, error)
        return None


def _intact(store: Store, commit: Commit) -> bool:
    """Whether every file verifies, one in memory at a time; if not, a warning names commit and file."""
    try:
        for name in commit.manifest["files"]:
            verified(store, commit, [name])
    except CheckpointError as error:
        store.stat(commit.place.key(MANIFEST))  # ObjectNotFound: not broken, but pruned while being read
        log.warning("skipping checkpoint %s: %s", commit.name, error)
        return False
    return True


def _untouched(commit: Commit, files: Mapping[str, Entry]) -> bool:
    """Whether the store lists every file as its writer left it, which spares reading it back."""
    found = {name: (entry.size, entry.etag) for name, entry in files.items() if name != MANIFEST}
    return found == {name: (facts["size"], facts.get("etag")) for name, facts in commit.manifest["files"].items()}


def _verify(store: Store, key: str, facts: Mapping[str, Any] | None) -> bytes:
    fix = "use another step, or restore the file"
    if facts is None:
        raise CheckpointError("the checkpoint has no such file", where=key, fix=fix)
    for _ in range(_READS):
        try:
            data = store.get(key)
        except ObjectNotFound:
            raise CheckpointError("a file of the checkpoint is missing", where=key, fix=fix) from None
        except ObjectDamaged:
            break
        if len(data) == facts["size"] and hashlib.sha256(data).hexdigest() == facts["sha256"]:
            return data
    raise CheckpointError("a file of the checkpoint is broken", where=key, fix=fix)


def _while_pruned(look: Callable[[], T]) -> T:
    """Look again as long as the run's writer prunes what is being looked at."""
    for _ in range(_LISTINGS - 1):
        try:
            return look()
        except ObjectNotFound:
            continue
    return look()
