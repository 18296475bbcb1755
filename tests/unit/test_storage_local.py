from __future__ import annotations

import errno
import fcntl
import os
import pickle
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from raycnn.errors import ObjectNotFound, PreconditionFailed, StorageError
from raycnn.storage import Entry, Store, local, open_store
from raycnn.storage.local import LocalStore


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "root"))


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_reads_back_what_was_written(store: Store) -> None:
    etag = store.put("a/b.bin", b"0123456789")
    assert store.stat("a/b.bin") == Entry("a/b.bin", 10, etag)
    assert store.get("a/b.bin") == b"0123456789"
    assert store.get("a/b.bin", 3) == b"3456789"
    assert store.get("a/b.bin", 3, 4) == b"3456"
    assert store.get("a/b.bin", 8, 100) == b"89"
    assert store.get("a/b.bin", 50, 1) == b""
    assert store.child("a").get("b.bin", 0, 1) == b"0"


@pytest.mark.parametrize("key", ["nothing", "a", "a/b.bin/c"])
def test_what_is_not_there_is_not_found(store: Store, key: str) -> None:
    store.put("a/b.bin", b"")
    for read in (store.get, store.stat):
        with pytest.raises(ObjectNotFound, match=key):
            read(key)


@pytest.mark.parametrize("key", ["", "/etc/passwd", "../x", "a/../../x", "a//b", "./a", "a\0b", "a/"])
def test_keys_that_leave_the_root_are_refused(store: Store, key: str) -> None:
    for use in (store.get, store.stat, lambda key: store.put(key, b""), lambda key: store.delete([key])):
        with pytest.raises(StorageError, match="not a usable key"):
            use(key)
    assert list(store.list()) == []


def test_create_only_never_overwrites(store: Store) -> None:
    store.put("a", b"first", create_only=True)
    with pytest.raises(PreconditionFailed):
        store.put("a", b"second", create_only=True)
    assert store.get("a") == b"first"
    assert files(Path(store.uri)) == ["a"]


def test_compare_and_swap(store: Store) -> None:
    with pytest.raises(PreconditionFailed):
        store.put("a", b"x", if_etag="0-0")
    old = store.put("a", b"0")
    new = store.put("a", b"1", if_etag=old)
    with pytest.raises(PreconditionFailed):
        store.put("a", b"x", if_etag=old)
    assert (store.get("a"), store.stat("a").etag) == (b"1", new)


def test_writes_within_one_tick_of_the_clock_have_their_own_tags(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: os.utime(descriptor, ns=(10**18, 10**18)))
    etags = [store.put("a", b"0")]
    for number in range(1, 9):
        etags.append(store.put("a", b"%d" % number, if_etag=etags[-1]))
    etags.append(store.put("a", b"9"))
    assert len(set(etags)) == 10


@pytest.mark.parametrize("stall_s", [1.0, 0.0])
def test_concurrent_swaps_lose_no_update(store: Store, stall_s: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "_STALL_S", stall_s)  # 0: everybody overtakes everybody
    store.put("count", b"0")

    def add(_: int) -> None:
        while True:
            etag = store.stat("count").etag
            try:
                store.put("count", b"%d" % (int(store.get("count")) + 1), if_etag=etag)
                return
            except PreconditionFailed:
                continue

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(add, range(80)))
    assert store.get("count") == b"80"


def test_a_writer_stopped_between_check_and_rename_is_overtaken(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    etag = store.put("a", b"old")
    stopped, go_on = threading.Event(), threading.Event()
    replace = local._replace

    def stop(temporary: Path, target: Path) -> str:
        if temporary.read_bytes() == b"stopped":
            stopped.set()
            assert go_on.wait(20)
        return replace(temporary, target)

    monkeypatch.setattr(local, "_replace", stop)
    monkeypatch.setattr(local, "_STALL_S", 0.1)
    with ThreadPoolExecutor(1) as pool:
        late = pool.submit(store.put, "a", b"stopped", if_etag=etag)
        assert stopped.wait(20)
        newer = store.put("a", b"new", if_etag=etag)
        go_on.set()
        with pytest.raises(PreconditionFailed):
            late.result()
    assert (store.get("a"), store.stat("a").etag) == (b"new", newer)
    assert files(Path(store.uri)) == ["a"]


def test_a_writer_killed_between_check_and_rename_blocks_nobody(store: Store) -> None:
    etag = store.put("a", b"old")
    code = (
        "import os, sys; from raycnn.storage import local, open_store\n"
        "local._replace = lambda temporary, target: os._exit(9)\n"
        "open_store(sys.argv[1]).put('a', b'new', if_etag=sys.argv[2])"
    )
    assert subprocess.run([sys.executable, "-c", code, store.uri, etag], check=False).returncode == 9
    assert store.get("a") == b"old"
    store.put("a", b"next", if_etag=store.put("a", b"newer", if_etag=etag))
    assert store.get("a") == b"next"
    assert files(Path(store.uri)) == ["a"]


def test_one_of_many_creators_wins(store: Store) -> None:
    gate = threading.Barrier(8)

    def create(number: int) -> int:
        gate.wait()
        try:
            store.put("deep/new/folder/a", b"%d" % number, create_only=True)
        except PreconditionFailed:
            return 0
        return 1

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(create, range(8))) == 1


def test_files_go_up_whole(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "source"
    path.write_bytes(os.urandom(300_000))
    etag = store.put_file("x/y", path, create_only=True)
    assert store.get("x/y") == path.read_bytes()
    assert store.stat("x/y").etag == etag
    with pytest.raises(PreconditionFailed):
        store.put_file("x/y", path, create_only=True)
    with pytest.raises(ObjectNotFound):
        store.put_file("x/z", tmp_path / "missing")


names = st.text(alphabet="ab-./é", min_size=1, max_size=3).filter(lambda name: name.strip("./") != "")
keys = st.lists(names.map(lambda name: name.replace("/", "x")), min_size=1, max_size=3).map("/".join)


@settings(max_examples=25, deadline=None)
@example({"a/b", "a-b", "a.b", "a/b-c/d", "a/b/c"}, "")
@given(st.sets(keys, max_size=8), st.text(alphabet="ab-./", max_size=3))
def test_listings_are_those_of_a_flat_sorted_map(wanted: set[str], prefix: str) -> None:
    with tempfile.TemporaryDirectory() as root:
        store = LocalStore(Path(root))
        there = {key for key in wanted if not any(other.startswith(key + "/") for other in wanted)}
        for key in there:
            store.put(key, key.encode())
        if not any(part in ("", ".", "..") for part in prefix.split("/")[:-1]):
            found = list(store.list(prefix))
            assert [entry.key for entry in found] == sorted(key for key in there if key.startswith(prefix))
            assert all(entry == store.stat(entry.key) for entry in found)
        assert store.folders() == sorted({key.split("/")[0] for key in there if "/" in key})
        store.delete([*there, "a/never"])
        assert os.listdir(root) == []


def test_nothing_below_a_missing_root(store: Store) -> None:
    assert list(store.list()) == []
    assert list(store.list("a/b")) == []
    assert store.folders() == store.folders("a") == []
    store.delete(["a/b"])


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "x.png").write_bytes(b"x")
    root = tmp_path / "root"
    root.mkdir()
    (root / "class").symlink_to(tmp_path / "elsewhere")
    (root / "gone").symlink_to(tmp_path / "nowhere")
    (tmp_path / "elsewhere" / "up").symlink_to(root)
    assert [entry.key for entry in LocalStore(root).list()] == ["class/x.png"]


def test_a_writer_that_dies_leaves_the_old_content(store: Store) -> None:
    store.put("a", b"old")
    code = (
        "import os, sys; from raycnn.storage import open_store\n"
        "os.fsync = lambda descriptor: os._exit(9)\n"
        "open_store(sys.argv[1]).put('a', b'new')"
    )
    assert subprocess.run([sys.executable, "-c", code, store.uri], check=False).returncode == 9
    assert store.get("a") == b"old"
    assert [entry.key for entry in store.list()] == ["a"]
    assert len(files(Path(store.uri))) == 2  # the dead writer's temporary file, which no listing shows
    store.sweep()
    assert files(Path(store.uri)) == ["a"]


def test_what_living_writers_need_is_not_swept(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    etag = store.put("a", b"old")
    replace = local._replace

    def swept(written: Path, target: Path) -> str:
        store.sweep()
        return replace(written, target)

    monkeypatch.setattr(local, "_replace", swept)
    store.put("folder/b", b"new")
    store.put("a", b"new", if_etag=etag)
    assert (store.get("a"), store.get("folder/b")) == (b"new", b"new")
    assert files(Path(store.uri)) == ["a", "folder/b"]


def test_a_file_swept_before_it_was_locked_is_made_again(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    lock, swept = fcntl.flock, []

    def late(file: Any, operation: int) -> None:
        if operation == fcntl.LOCK_EX and not swept:
            swept.append(Path(file.name))
            store.sweep()
        lock(file, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    store.put("folder/a", b"x")
    assert not swept[0].exists()
    assert files(Path(store.uri)) == ["folder/a"]


def test_claims_to_a_tag_that_is_gone_are_swept_and_others_stay(store: Store) -> None:
    etag = store.put("a", b"x")
    for tag in (etag, "0-0"):
        (Path(store.uri) / f".raycnn-a-{tag}-0").symlink_to(".raycnn-dead")
    store.sweep()
    assert [name for name in os.listdir(store.uri) if name != "a"] == [f".raycnn-a-{etag}-0"]


def test_content_is_durable_before_it_is_visible(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    fsync, replace = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (events.append(_kind(fd)), fsync(fd))[1])
    monkeypatch.setattr(Path, "replace", lambda a, b: (events.append("rename"), replace(a, b))[1])
    store.put("a", b"x")
    assert events[-3:] == ["file", "rename", "folder"]
    events.clear()
    store.put("new/a", b"x")
    assert events == ["folder", "file", "rename", "folder"]  # the first is the new folder's own entry


def _kind(descriptor: int) -> str:
    return "folder" if Path(f"/proc/self/fd/{descriptor}").resolve().is_dir() else "file"


def test_a_full_disk_is_told_with_path_and_bytes(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    store.put("a", b"old")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(StorageError, match=r"no space left.*/root/a, 3 bytes") as caught:
            store.put("a", b"new")
    assert caught.value.code == 5
    assert store.get("a") == b"old"
    assert files(Path(store.uri)) == ["a"]


def test_other_disk_errors_are_typed(store: Store, tmp_path: Path) -> None:
    store.put("a", b"")
    with pytest.raises(StorageError, match="cannot write: Not a directory"):
        store.put("a/b", b"")
    with pytest.raises(StorageError, match="cannot write: File name too long"):
        store.put("n" * 300, b"")


def test_stores_travel_between_processes(store: Store) -> None:
    store.put("a", b"x")
    copy = pickle.loads(pickle.dumps(store))
    assert copy == store
    assert copy.get("a") == b"x"
