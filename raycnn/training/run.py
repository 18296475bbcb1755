"""A run's folder: run.json, which pins what the run is, who may write to it, and its commits by name; without torch."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass
from typing import Any, Final

from pydantic_core import to_jsonable_python

from raycnn.config import Config, fields, identity, identity_hash
from raycnn.errors import CheckpointError, ObjectNotFound, PreconditionFailed
from raycnn.storage import Store, open_store
from raycnn.storage.base import parse_json
from raycnn.storage.lease import Lease, LeaseRecord, acquire, read_lease
from raycnn.training import checkpoint
from raycnn.training.checkpoint import Commit
from raycnn.training.metrics import metric_mode
from raycnn.training.state import TrainState
from raycnn.version import versions

FORMAT = 1
RESULT: Final = "search/result.json"
"""What a search, or a cross-validation, that has ended found."""

_STARTED_BY: Final = {"train": "raycnn train", "search": "raycnn search", "folds": "raycnn train --train.folds"}


@dataclass(frozen=True)
class RunFacts:
    """run.json: what the run is pinned to."""

    index: str
    classes: tuple[str, ...]
    identity: dict[str, Any]
    config: dict[str, Any]
    kind: str
    parent: dict[str, Any] | None = None
    teacher: dict[str, Any] | None = None


def read_run(store: Store) -> RunFacts | None:
    """run.json of a run's folder; None before its first start.

    Raises:
        CheckpointError: written by a newer version, or damaged.
    """
    where = f"{store.uri}/run.json"
    try:
        tree = parse_json(store.get("run.json"))
        if tree["format"] > FORMAT:
            fix = "upgrade raycnn, or start under a new run.name"
            raise CheckpointError("written by a newer version of raycnn", where=where, fix=fix)
        index, identity, config = str(tree["index"]), dict(tree["identity"]), dict(tree["config"])
        classes, kind, parent = tuple(map(str, tree["classes"])), str(tree.get("kind", "train")), tree.get("parent")
        parent = {"run": parent} if isinstance(parent, str) else parent  # all that was known of it at first
        teacher = tree.get("teacher")
        pinned = (dict(each) if each else None for each in (parent, teacher))
        return RunFacts(index, classes, identity, config, kind, *pinned)
    except ObjectNotFound:
        return None
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        fix = "restore the file, or start under a new run.name"
        raise CheckpointError(f"not the facts of a run: {error!r}", where=where, fix=fix) from None


def check_identity(config: Config, facts: RunFacts, where: str) -> None:
    """CheckpointError with the differing fields when `config` is not the run's, in a field that decides the result."""
    now = identity(config)
    # a setting that did not exist when the run was started had the effect of its default
    then = {
        path: to_jsonable_python(info.default) for path, info in fields() if not info.is_required()
    } | facts.identity
    differing = [
        f"{path}: {then.get(path)} -> {now.get(path)}"
        for path in sorted(now.keys() | facts.identity.keys())
        if now.get(path) != then.get(path)
    ]
    if differing:
        raise CheckpointError(
            f"the run was started with other settings: {'; '.join(differing)}",
            where=where,
            fix="restore them, or choose a new run.name",
        )


def check_classes(facts: RunFacts, now: set[str], where: str) -> None:
    """CheckpointError with the difference when the classes of a source are not those that the run is pinned to."""
    gone, new = sorted(set(facts.classes) - now), sorted(now - set(facts.classes))
    if now and facts.classes and (gone or new):
        differing = [f"{what}: {', '.join(names[:20])}" for what, names in (("gone", gone), ("new", new)) if names]
        fix = "restore them, or train them under a new run.name"
        raise CheckpointError(
            f"the source has other classes than the run: {'; '.join(differing)}", where=where, fix=fix
        )


def check_kind(facts: RunFacts, kind: str, where: str) -> None:
    """CheckpointError if the run is not what `kind` says: a fit (train), a search, or a cross-validation (folds)."""
    if facts.kind != kind:
        started = _STARTED_BY.get(facts.kind, facts.kind)
        fix = f"choose another run.name, or use `{started}`"
        raise CheckpointError(f"this run was started by `{started}`", where=where, fix=fix)


def folder_of(config: Config, storage: Store) -> Store:
    """The folder, below the root of run.storage, that evaluate and predict take: the run's, or one of its folds'."""
    store, fold = storage.child(config.run.name), config.train.fold
    if fold is None or (facts := read_run(store)) is None or facts.kind != "folds":
        return store
    return store.child(fold_folder(fold))


def fold_folder(number: int) -> str:
    """Folder, below that of a cross-validation, of one of its folds: a run folder of its own."""
    return f"search/trials/{number:04d}"


def hold(store: Store) -> Lease:
    """The lease of the run in the folder `store`; a context manager.

    Raises:
        RunBusyError: another job has it.
        CheckpointError: there are checkpoints and no lease.json that says which of them count.
    """

    def newest_step(record: LeaseRecord) -> int:
        if not record.epoch and checkpoint.commits(store, None):
            fix = "restore it, or start under a new run.name"
            raise CheckpointError("lease.json, which checkpoints count by, is gone", where=store.uri, fix=fix)
        return checkpoint.newest_step(store, record)

    lease = acquire(store, newest_step)
    store.sweep()
    return lease


def place_of(config: Config, run: str) -> Store:
    """The folder of run:NAME: below run.storage, or anywhere if NAME is a whole uri."""
    name = run.removeprefix("run:")
    return open_store(name) if "/" in name else open_store(config.run.storage).child(name)


def from_elsewhere(config: Config) -> dict[str, str]:
    """Overrides by which its run:NAMEs are the same runs below another run.storage."""
    names = {"model.weights": config.model.weights, "loss.distill.teacher": config.loss.distill.teacher}
    runs = {path: text.removeprefix("run:") for path, text in names.items() if text.startswith("run:")}
    return {path: f"run:{config.run.storage}/{name}" for path, name in runs.items() if "/" not in name}


def parent_of(config: Config, told: RunFacts | None) -> dict[str, Any] | None:
    """Where model.weights: run:NAME starts: as `told`, the run's or its search's facts, pins it; else NAME's best now.

    Returns:
        {run, step, checkpoint, weights: their sha256, identity_hash, index, versions, parent}, all of the parent; of a
        run of an older version {run} alone; None with other weights.

    Raises:
        CheckpointError: no such run, or it has no checkpoint.
    """
    return _pinned(config, config.model.weights, told.parent if told else None)


def teacher_of(config: Config, told: RunFacts | None) -> dict[str, Any] | None:
    """The same of loss.distill.teacher."""
    return _pinned(config, config.loss.distill.teacher, told.teacher if told else None)


def _pinned(config: Config, run: str, told: dict[str, Any] | None) -> dict[str, Any] | None:
    if not run.startswith("run:"):
        return None
    name = run.removeprefix("run:").rpartition("/")[2]
    if told and told["run"] == name:
        return told
    store = place_of(config, run)
    facts, commit = find_commit(store, "best")
    tree = parse_json(store.get("run.json"))
    return {
        "run": name,
        "step": commit.step,
        "checkpoint": commit.name,
        "weights": commit.manifest["files"]["weights.safetensors"]["sha256"],
        "identity_hash": tree["identity_hash"],
        "index": facts.index,
        "versions": tree["versions"],
        "parent": facts.parent,
    }


def create_run(
    config: Config, store: Store, index_hash: str, classes: tuple[str, ...], kind: str = "train",
    told: RunFacts | None = None,
) -> None:  # fmt: skip
    """Write run.json, once and for all but for its count of looks at the test split.

    Args:
        told: of the search that the run is a trial of, whose parent and teacher are its own.
    """
    if read_run(store) is None:
        tree = _tree(config, index_hash, classes, kind, told)
        with contextlib.suppress(PreconditionFailed):  # an answer that was lost on its way
            store.put("run.json", json.dumps(tree, indent=1).encode(), create_only=True)
    facts = read_run(store)
    if facts is None or facts.index != index_hash:
        fix = "start under a new run.name"
        raise CheckpointError("the run is pinned to another index", where=store.uri, fix=fix)
    check_identity(config, facts, store.uri)


def _tree(
    config: Config, index_hash: str, classes: tuple[str, ...], kind: str, told: RunFacts | None
) -> dict[str, Any]:
    teacher = teacher_of(config, told)
    return {
        "format": FORMAT,
        "kind": kind,
        "index": index_hash,
        "classes": list(classes),
        "identity": identity(config),
        "identity_hash": identity_hash(config),
        "config": config.model_dump(mode="json"),
        "versions": versions(),
        "parent": parent_of(config, told),
        **({"teacher": teacher} if teacher else {}),
    }


def count_look(store: Store) -> int:
    """Count one more look at the test split in run.json; how many there were in all.

    Every look at the test split, and every choice made after it, makes its metrics a little too good.
    """
    while True:
        etag = store.stat("run.json").etag
        tree = json.loads(store.get("run.json"))
        tree["test_looks"] = tree.get("test_looks", 0) + 1
        try:
            store.put("run.json", json.dumps(tree, indent=1).encode(), if_etag=etag)
        except PreconditionFailed:
            continue
        return int(tree["test_looks"])


def read_state(store: Store, commit: Commit) -> TrainState:
    """The training state of a commit, verified."""
    return TrainState.decode(checkpoint.verified(store, commit, ["state.json"])["state.json"])


def find_commit(store: Store, step: int | str) -> tuple[RunFacts, Commit]:
    """What a run is pinned to, and its commit at a step, or its best or latest one.

    Raises:
        CheckpointError: no such run or checkpoint.
    """
    record = read_lease(store)
    facts = read_run(store)
    if facts is None:
        raise CheckpointError("no such run", where=store.uri, fix="see `raycnn runs`, or train it first")
    if facts.kind == "folds":
        folds = facts.config["train"]["folds"]
        fix = f"name one: --train.folds {folds} --train.fold 0, or {store.uri}/{fold_folder(0)} for raycnn.load"
        raise CheckpointError(
            "a cross-validation has a network for each fold, none of its own", where=store.uri, fix=fix
        )
    found = checkpoint.commits(store, record)
    metric = facts.config["train"]["metric"]
    if step == "best":
        commit = checkpoint.best(found, metric, metric_mode(metric))
        if commit is None and any(each.manifest.get("metrics") for each in found):
            commit = checkpoint.latest(store, record)  # evaluated on no rows: the newest is the best there is
    elif step == "latest":
        commit = checkpoint.latest(store, record)
    else:
        commit = next((each for each in found if each.step == step), None)
    if commit is None:
        have = ", ".join(str(each.step) for each in found) or "none"
        raise CheckpointError(f"no checkpoint {step}", where=store.uri, fix=f"steps that are kept: {have}")
    return facts, commit
