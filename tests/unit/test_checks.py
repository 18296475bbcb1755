from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest

from raycnn import checks, dashboard
from raycnn.checks import cluster, machine, store
from raycnn.cluster import connect
from raycnn.config import load_config
from raycnn.errors import ConfigError, StorageError
from raycnn.storage import open_store
from raycnn.storage.local import LocalStore


@contextmanager
def server(status: int, date: str | None = None, location: str = "") -> Iterator[str]:
    """A web server on loopback that gives one answer to everything; its URL."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response_only(status)
            if date is not None:
                self.send_header("Date", date)
            if location:
                self.send_header("Location", location)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_HEAD = do_GET

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{running.server_port}"
        finally:
            running.shutdown()
            thread.join()


# ---- the cluster ----


@pytest.mark.parametrize(
    ("status", "ok", "ok_elsewhere"),
    [(401, True, True), (403, True, True), (200, None, False), (302, None, None), (404, None, None)],
)
def test_cluster_authentication(
    status: int, ok: bool | None, ok_elsewhere: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with server(200) as open_page, server(status, location=f"{open_page}/login") as url:
        assert cluster.cluster_authentication(url).ok is ok
        assert cluster.cluster_authentication(url.removeprefix("http://")).ok is ok  # as Ray gives it
        monkeypatch.setattr(dashboard, "is_loopback", lambda host: False)
        assert cluster.cluster_authentication(url).ok is ok_elsewhere


def test_cluster_that_does_not_answer_is_not_called_safe() -> None:
    with server(200) as url:
        pass
    assert cluster.cluster_authentication(url).ok is None


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_loopback(host: str) -> None:
    assert dashboard.is_loopback(host)


@pytest.mark.parametrize("host", ["10.0.0.1", "0.0.0.0", "172.31.4.4", "fe80::1", "8.8.8.8", "host.invalid"])
def test_not_loopback(host: str) -> None:
    assert not dashboard.is_loopback(host)


# ---- the object store ----


def test_object_store_that_keeps_its_word(tmp_path: Path) -> None:
    check = store.object_store(open_store(str(tmp_path)))
    assert check.ok is True
    assert not list(open_store(str(tmp_path)).list())


@dataclass(frozen=True)
class Faulty(LocalStore):
    """A directory whose answers `fault` spoils."""

    fault: str = ""

    def put(self, key: str, data: bytes, *, create_only: bool = False, if_etag: str | None = None) -> str:
        if self.fault == "full":
            raise StorageError("disk full", where=key, fix="free some space")
        return super().put(
            key,
            data,
            create_only=create_only and self.fault != "ignores create_only",
            if_etag=None if self.fault == "ignores if_etag" else if_etag,
        )

    def get(self, key: str, offset: int = 0, length: int | None = None) -> bytes:
        return b"?" if self.fault == "stale" else super().get(key, offset, length)


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ("full", "disk full"),
        ("stale", "does not give back"),
        ("ignores create_only", "must only be created"),
        ("ignores if_etag", "has changed since"),
    ],
)
def test_object_store_that_does_not(tmp_path: Path, fault: str, told: str) -> None:
    check = store.object_store(Faulty(tmp_path, fault))
    assert check.ok is False
    assert told in check.detail
    assert check.fix
    assert not list(open_store(str(tmp_path)).list())


def test_source(tmp_path: Path) -> None:
    assert store.source(str(tmp_path)).ok is False
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").touch()
    assert store.source(str(tmp_path)).ok is True
    assert store.source(f"{tmp_path}/images.csv").ok is False
    (tmp_path / "images.csv").touch()
    assert store.source(f"{tmp_path}/images.csv").ok is True


DATE = "Sun, 06 Nov 1994 08:49:37 GMT"  # RFC 9110, 5.6.7


@pytest.mark.parametrize(
    ("apart_s", "ok", "told"),
    [(0, True, "0 s"), (299, True, "299 s ahead"), (301, False, "301 s ahead"), (-301, False, "301 s behind")],
)
def test_clock_against_the_stores(apart_s: int, ok: bool, told: str) -> None:
    check = store.judge_clock(DATE, 784111777 + apart_s)
    assert check.ok is ok
    assert told in check.detail


def test_clock_asks_the_store() -> None:
    with server(403, DATE) as url:
        assert store.clock(url).ok is False
    with server(403) as url:
        assert store.clock(url).ok is None
    assert store.clock(url).ok is None


# ---- this machine ----


def test_unmet_requirements() -> None:
    have = {"ray": "2.60.0", "torch": "2.5.1+cu124", "numpy": "2.1.0rc1"}.get
    asked = ["ray[data]>=2.60,<2.64", "torch>=2.6", "numpy>=2", "pillow>=11", "timm>=1; extra == 'timm'"]
    lines = machine.unmet(asked, have)
    assert [line.split()[0] for line in lines] == ["torch", "pillow"]
    assert "2.5.1" in lines[0]
    assert "missing" in lines[1]


@pytest.mark.parametrize(
    ("workers", "cpus", "gpus", "ok"), [(2, 2, 0, True), (3, 2, 0, None), (2, 64, 2, True), (4, 64, 2, None)]
)
def test_processors(workers: int, cpus: int, gpus: int, ok: bool | None) -> None:
    check = machine.processors(workers, cpus, gpus)
    assert check.ok is ok
    assert bool(check.fix) is not bool(ok)


@pytest.mark.parametrize(("free_gib", "ok"), [(0.9, False), (9, None), (11, True)])
def test_disk_space(free_gib: float, ok: bool | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Path] = []

    def usage(path: Path) -> object:
        asked.append(path)
        return type("Usage", (), {"free": int(free_gib * machine.GIB)})

    monkeypatch.setattr(machine.shutil, "disk_usage", usage)
    assert machine.disk_space("run.storage", tmp_path / "not" / "yet").ok is ok
    assert asked == [tmp_path]
    assert machine.shared_memory(tmp_path).ok is (True if free_gib >= 1 else None)


def test_no_shared_memory(tmp_path: Path) -> None:
    assert machine.shared_memory(tmp_path / "none").ok is None


@pytest.mark.parametrize(("hard", "ok"), [(4096, None), (65536, True), (-1, True)])
def test_open_files(hard: int, ok: bool | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.resource, "getrlimit", lambda _: (1024, hard))
    assert machine.open_files().ok is ok


# ---- all of them ----


def names(found: list[checks.Check]) -> set[str]:
    return {check.name for check in found}


def test_checks_that_apply(tmp_path: Path) -> None:
    machine = {"versions", "open files", "shared memory", "temporary space"}
    assert names(checks.checks(None)) == machine | {"processors", "GPU"}
    with server(401) as url:
        assert names(checks.checks(None, url)) == machine | {"cluster authentication"}

    def config(storage: str) -> object:
        tree = {"data": {"source": str(tmp_path)}, "model": {"name": "reference/lenet"}}
        return load_config({**tree, "run": {"name": "a", "storage": storage}})

    local = checks.checks(config(str(tmp_path)))
    assert names(local) == machine | {"processors", "GPU", "object store", "images", "run.storage"}
    unusable = checks.checks(config("ftp://nowhere"))
    assert [check.ok for check in unusable if check.name == "object store"] == [False]


def test_a_gpu_that_torch_cannot_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert machine.graphics(tmp_path / "none").ok is True
    for name in ("0000:00:1e.0", "0000:00:1f.0"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    check = machine.graphics(tmp_path)
    assert check.ok is False
    assert "2 in this machine, 1 usable" in check.detail
    assert "CUDA" in check.fix
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert machine.graphics(tmp_path).ok is True


def test_packages_that_are_not_met_are_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.importlib.metadata, "requires", lambda _: ["ray>=99", "numpy>=1"])
    check = machine.versions()
    assert check.ok is False
    assert "ray is" in check.detail
    assert "needs >=99" in check.detail
    assert check.fix


def test_a_cluster_that_cannot_be_joined_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: object) -> None:
        raise ConnectionError("no route\nto it")

    monkeypatch.setattr("ray.init", refuse)  # a real attempt takes Ray half a minute
    (check,) = cluster.cluster_checks("10.0.0.1:6379", 1)
    assert check.ok is False
    assert "10.0.0.1:6379 cannot be joined: no route to it" in check.detail
    assert "token" in check.fix


def test_an_open_cluster_that_others_reach_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with server(200) as url:
        dashboard.refuse_open(url)
        monkeypatch.setattr(dashboard, "is_loopback", lambda host: False)  # the tests have no other network
        with pytest.raises(ConfigError, match=r"runs anyone's jobs without a token .*RAY_AUTH_MODE=token"):
            dashboard.refuse_open(url)
    dashboard.refuse_open(url)  # it does not answer: not to be told
    with server(401) as url:
        dashboard.refuse_open(url)


def test_joining_refuses_an_open_cluster_and_leaves_it(monkeypatch: pytest.MonkeyPatch) -> None:
    left: list[bool] = []
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("ray.shutdown", lambda: left.append(True))
    monkeypatch.setattr(dashboard, "is_loopback", lambda host: False)
    with server(200) as url:
        context = SimpleNamespace(dashboard_url=url.removeprefix("http://"))
        monkeypatch.setattr("ray.init", lambda **_: context)  # tests/ray/test_submit.py joins a real one
        with pytest.raises(ConfigError, match="without a token"), connect("10.0.0.1:6379"):
            pytest.fail("joined")
    assert left == [True]
