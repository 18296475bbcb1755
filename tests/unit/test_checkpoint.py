"""Writing, finding, verifying and pruning checkpoints in a directory."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from raycnn.errors import CheckpointError, ObjectNotFound, RunBusyError, StorageError
from raycnn.storage.lease import LeaseRecord
from raycnn.storage.local import LocalStore
from raycnn.training import checkpoint
from raycnn.training.checkpoint import Commit

FILES = ("weights.safetensors", "optimizer.pt", "state.json", "metrics.jsonl")


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path)


def record(epoch: int = 1, bases: dict[int, int] | None = None) -> LeaseRecord:
    return LeaseRecord("me", epoch, beat=0, attempts=1, bases=bases or {1: -1}, released=False)


def files(step: int, epoch: int = 1) -> dict[str, bytes]:
    return {name: f"{name} {step} {epoch}\n".encode() * 9 for name in FILES}


def write(store: Any, step: int, epoch: int = 1, **facts: Any) -> Commit:
    return checkpoint.write(store, step, epoch, files(step, epoch), facts, guard=lambda: None)


def names(store: Any) -> list[str]:
    return store.folders("checkpoints")


def flip(store: LocalStore, commit: Commit, name: str) -> None:
    path = store.root / commit.place.key(name)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_a_commit_comes_back_as_written(store: LocalStore) -> None:
    commit = write(store, 1200, 3, samples_seen=76800, metrics={"accuracy": 0.5}, versions=("a",))
    assert commit.name == "step-00001200.e003"
    assert names(store) == [commit.name]
    assert checkpoint.commits(store, None) == [commit]
    assert checkpoint.latest(store, None) == commit
    assert checkpoint.verified(store, commit) == files(1200, 3)
    assert checkpoint.verified(store, commit, ["state.json"]) == {"state.json": files(1200, 3)["state.json"]}
    assert checkpoint.verified(store, commit, []) == {}
    facts = json.loads(store.get(commit.place.key("MANIFEST.json")))
    assert (facts["format"], facts["step"], facts["epoch"], facts["samples_seen"]) == (1, 1200, 3, 76800)
    assert facts["files"]["state.json"]["size"] == len(files(1200, 3)["state.json"])


def test_nothing_is_found_where_nothing_was_committed(store: LocalStore) -> None:
    assert checkpoint.commits(store, None) == []
    assert checkpoint.latest(store, record()) is None


def test_the_manifest_is_put_after_the_guard_and_after_all_files(store: LocalStore) -> None:
    seen: list[set[str]] = []

    def guard() -> None:
        seen.append({entry.key.rpartition("/")[2] for entry in store.list("checkpoints/")})
        raise RunBusyError("another job writes this run")

    with pytest.raises(RunBusyError):
        checkpoint.write(store, 10, 1, files(10), {}, guard=guard)
    assert seen == [set(FILES)]
    assert checkpoint.commits(store, None) == []


def test_facts_cannot_pose_as_the_protocol(store: LocalStore) -> None:
    commit = write(store, 10, format=7, files={})
    assert commit.manifest["format"] == 1
    assert set(commit.manifest["files"]) == set(FILES)


def test_the_same_commit_again_is_a_success(store: LocalStore) -> None:
    first = write(store, 10, loss=0.5)
    assert write(store, 10, loss=0.5) == first


@pytest.mark.parametrize("other", ["file", "facts"])
def test_another_content_under_the_same_name_is_refused_and_changes_nothing(store: LocalStore, other: str) -> None:
    commit = write(store, 10, loss=0.5)
    changed = {**files(10), "state.json": b"else"} if other == "file" else files(10)
    facts = {"loss": 0.25 if other == "facts" else 0.5}
    with pytest.raises(CheckpointError, match="another content"):
        checkpoint.write(store, 10, 1, changed, facts, guard=lambda: None)
    assert checkpoint.latest(store, None) == commit


def test_newest_is_by_step_then_epoch_as_numbers(store: LocalStore) -> None:
    places = [(99_999_999, 1), (100_000_000, 1), (20, 999), (20, 1000), (20, 2), (3, 4)]
    for step, epoch in places:
        write(store, step, epoch)
    found = [(c.step, c.epoch) for c in checkpoint.commits(store, None)]
    assert found == [(100_000_000, 1), (99_999_999, 1), (20, 1000), (20, 999), (20, 2), (3, 4)]


def test_foreign_objects_are_no_checkpoints(store: LocalStore) -> None:
    for name in ("step-10.e1", "step-0000000010.e001", "step-00000010.e001.bak", "notes"):
        store.put(f"checkpoints/{name}/MANIFEST.json", b"{}")
    store.put("checkpoints/README", b"hello")
    assert checkpoint.latest(store, None) is None
    checkpoint.prune(store, record(5), 1, None)
    assert len(names(store)) == 4


def test_a_fenced_out_commit_is_never_believed(store: LocalStore) -> None:
    base = write(store, 10, 1)
    write(store, 20, 1)  # its writer lost the lease and woke up after the base was noted
    assert checkpoint.latest(store, record(2, {1: -1, 2: 10})) == base
    ours = write(store, 15, 2)
    assert checkpoint.commits(store, record(2, {1: -1, 2: 10})) == [ours, base]
    write(store, 30, 3)  # of an epoch that is not ours to know
    assert checkpoint.latest(store, record(2, {1: -1, 2: 10})) == ours
    assert checkpoint.latest(store, record(4, {1: -1, 2: 10, 3: 10, 4: 10})) == base


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("fault", ["flipped", "truncated", "missing"])
def test_a_broken_newest_commit_falls_back_with_a_warning(
    store: LocalStore, caplog: pytest.LogCaptureFixture, fault: str, name: str
) -> None:
    old, new = write(store, 10), write(store, 20)
    path = store.root / new.place.key(name)
    if fault == "flipped":
        flip(store, new, name)
    elif fault == "truncated":
        path.write_bytes(path.read_bytes()[:-1])
    else:
        path.unlink()
    with caplog.at_level(logging.WARNING):
        assert checkpoint.latest(store, record()) == old
    assert new.name in caplog.text
    assert name in caplog.text
    with pytest.raises(CheckpointError, match=name):
        checkpoint.verified(store, new)
    assert len(checkpoint.verified(store, new, set(FILES) - {name})) == 3


MANGLED: dict[str, Callable[[dict[str, Any]], bytes]] = {
    "empty": lambda m: b"",
    "cut": lambda m: json.dumps(m).encode()[:-9],
    "not utf-8": lambda m: b"\xff" + json.dumps(m).encode(),
    "a list": lambda m: b"[1]",
    "no format": lambda m: json.dumps({k: v for k, v in m.items() if k != "format"}).encode(),
    "format as text": lambda m: json.dumps({**m, "format": "1"}).encode(),
    "another step": lambda m: json.dumps({**m, "step": 10}).encode(),
    "another epoch": lambda m: json.dumps({**m, "epoch": 2}).encode(),
    "files as a list": lambda m: json.dumps({**m, "files": list(m["files"])}).encode(),
    "a file elsewhere": lambda m: json.dumps({**m, "files": {"../x": {"size": 1, "sha256": ""}}}).encode(),
    "no digest": lambda m: json.dumps({**m, "files": {"state.json": {"size": 1}}}).encode(),
}


@pytest.mark.parametrize("kind", MANGLED)
def test_a_broken_manifest_falls_back_with_a_warning(
    store: LocalStore, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    old, new = write(store, 10), write(store, 20)
    store.put(new.place.key("MANIFEST.json"), MANGLED[kind](new.manifest))
    assert checkpoint.latest(store, record()) == old
    assert checkpoint.commits(store, record()) == [old]
    assert new.name in caplog.text


def test_all_broken_is_an_error_and_no_silent_restart(store: LocalStore) -> None:
    flip(store, write(store, 10), "weights.safetensors")
    store.put(write(store, 20).place.key("MANIFEST.json"), b"?")
    with pytest.raises(CheckpointError, match="no checkpoint of the run is intact") as caught:
        checkpoint.latest(store, record())
    assert caught.value.code == 7


def test_a_newer_format_is_refused_with_code_7(store: LocalStore) -> None:
    write(store, 10)
    new = write(store, 20)
    store.put(new.place.key("MANIFEST.json"), json.dumps({"format": 2, "blocks": []}).encode())
    for look in (checkpoint.latest, checkpoint.commits):
        with pytest.raises(CheckpointError, match="use a newer raycnn") as caught:
            look(store, record())
        assert caught.value.code == 7
    with pytest.raises(CheckpointError, match="format 2"):
        checkpoint.prune(store, record(), 1, None)
    assert len(names(store)) == 2
    assert checkpoint.latest(store, record(2, {1: -1, 2: 10})) is not None  # fenced out, so not looked at


def test_best_is_the_first_of_the_best_evaluated(store: LocalStore) -> None:
    values = {10: None, 20: 0.5, 30: 0.75, 40: 0.75, 50: 0.25}
    for step, value in values.items():
        write(store, step, metrics=value and {"loss": value, "auroc": None})
    found = [*checkpoint.commits(store, None), Commit(60, 1, {}), Commit(70, 1, {"metrics": {}})]
    assert [checkpoint.best(found, "loss", mode).step for mode in ("max", "min")] == [30, 50]
    assert checkpoint.best(found, "auroc", "max") is None
    assert checkpoint.best([], "loss", "max") is None


def test_prune_keeps_the_newest_and_the_best(store: LocalStore) -> None:
    found = [write(store, step) for step in (10, 20, 30, 40, 50)]
    checkpoint.prune(store, record(), 2, found[1])
    assert names(store) == ["step-00000020.e001", "step-00000040.e001", "step-00000050.e001"]
    checkpoint.prune(store, record(), 1, None)
    assert names(store) == ["step-00000050.e001"]
    assert checkpoint.verified(store, found[-1]) == files(50)
    checkpoint.prune(store, record(), 3, None)
    assert names(store) == ["step-00000050.e001"]


def test_prune_counts_intact_commits_only(store: LocalStore) -> None:
    found = [write(store, step) for step in (10, 20, 30, 40)]
    flip(store, found[3], "optimizer.pt")
    store.put(found[2].place.key("MANIFEST.json"), b"?")
    checkpoint.prune(store, record(), 1, None)
    assert checkpoint.latest(store, record()) == found[1]
    assert found[0].name not in names(store)


def test_prune_deletes_no_commit_when_none_is_intact(store: LocalStore) -> None:
    for step in (10, 20):
        flip(store, write(store, step), "state.json")
    checkpoint.prune(store, record(), 1, None)
    assert len(names(store)) == 2


def test_prune_reads_back_what_was_copied_here(store: LocalStore, tmp_path: Path) -> None:
    # other etags than the manifests note, but the content they note
    found = [write(store, step) for step in (10, 20)]
    for entry in list(store.list("checkpoints/")):
        store.put(entry.key, store.get(entry.key))
    checkpoint.prune(store, record(), 1, None)
    assert names(store) == [found[1].name]


def test_orphans_go_when_a_later_epoch_prunes(store: LocalStore) -> None:
    base = write(store, 10, 1)
    fenced_out = write(store, 20, 1)
    for step, epoch in ((12, 1), (14, 2), (16, 3)):
        store.put(f"checkpoints/step-{step:08d}.e{epoch:03d}/weights.safetensors", b"half")
    later = write(store, 12, 3)
    checkpoint.prune(store, record(1), 1, fenced_out)
    assert len(names(store)) == 5  # all but the commit before the newest one of epoch 1
    assert base.name not in names(store)
    checkpoint.prune(store, record(2, {1: -1, 2: 10}), 1, None)
    assert names(store) == ["step-00000012.e003", "step-00000014.e002", "step-00000016.e003"]
    assert checkpoint.verified(store, later) == files(12, 3)


@dataclass
class Watched:
    """A store that calls `before(method, key)` ahead of every request."""

    inner: LocalStore
    before: Callable[[str, str], None]

    def __getattr__(self, method: str) -> Any:
        attribute = getattr(self.inner, method)
        if not callable(attribute):
            return attribute

        def call(key: Any = "", *args: Any, **kwargs: Any) -> Any:
            self.before(method, key)
            return attribute(key, *args, **kwargs)

        return call


def test_manifests_are_deleted_before_any_file(store: LocalStore) -> None:
    for step in (10, 20, 30):
        write(store, step)
    deleted: list[str] = []
    watched = Watched(store, lambda method, keys: deleted.extend(keys) if method == "delete" else None)
    checkpoint.prune(watched, record(), 1, None)  # type: ignore[arg-type]
    assert len(deleted) == 10
    assert all(key.endswith("/MANIFEST.json") for key in deleted[:2])
    assert not any(key.endswith("/MANIFEST.json") for key in deleted[2:])


@pytest.mark.parametrize("read", ["MANIFEST.json", "weights.safetensors", "metrics.jsonl"])
def test_a_reader_is_never_left_with_nothing_while_the_writer_prunes(store: LocalStore, read: str) -> None:
    write(store, 10)
    steps: Iterator[int] = iter(range(20, 60, 10))

    def commit_and_prune(method: str, key: str) -> None:
        step = next(steps, None) if method == "get" and key.endswith(read) else None
        if step is not None:
            write(store, step)
            checkpoint.prune(store, record(), 1, None)

    watched = Watched(store, commit_and_prune)
    found = checkpoint.latest(watched, None)  # type: ignore[arg-type]
    assert found is not None
    assert found.step == 50


def test_a_body_flipped_on_its_way_is_read_again(store: LocalStore) -> None:
    commit = write(store, 10)
    path = store.root / commit.place.key("state.json")
    good = path.read_bytes()
    bodies = iter([b"?" + good[1:], good[:-1], good])

    def body(method: str, key: str) -> None:
        if key.endswith("state.json"):
            path.write_bytes(next(bodies))

    watched: Any = Watched(store, body)
    assert checkpoint.verified(watched, commit, ["state.json"]) == {"state.json": good}


def test_a_store_that_does_not_answer_is_not_an_empty_one(store: LocalStore) -> None:
    write(store, 10)

    def refuse(method: str, key: str) -> None:
        if method == "get" and key.endswith("state.json"):
            raise StorageError("the store does not answer")

    watched: Any = Watched(store, refuse)
    with pytest.raises(StorageError, match="does not answer"):
        checkpoint.latest(watched, record())


def test_a_listing_that_stays_ahead_of_the_objects_ends(store: LocalStore) -> None:
    commit = write(store, 10)

    def vanish(method: str, key: str) -> None:
        if method == "get":
            raise ObjectNotFound("no such object", where=key)

    watched: Any = Watched(store, vanish)
    with pytest.raises(ObjectNotFound, match=commit.name):
        checkpoint.latest(watched, record())
