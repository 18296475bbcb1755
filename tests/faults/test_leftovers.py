"""Nothing stays behind: no process, temporary file, shared memory, placement group or half an upload."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

import raycnn
from raycnn.cluster import connect
from raycnn.errors import DivergedError
from raycnn.storage import Store, open_store
from raycnn.storage.aws import client
from tests.support.digits import write_digits

pytestmark = pytest.mark.slow

GONE_S = 30
"""Seconds after the end of a command by which nothing of it may be there."""
SPACE = ["--search.space", "{optim.lr: {grid: [0.001, 0.002, 0.004, 0.008]}}", "--search.concurrent", "2"]
DIVERGING = {"optim.lr": 1e30, "optim.warmup_epochs": 0, "optim.schedule": "constant"}


@pytest.fixture
def config(bucket: str, tmp_path: Path) -> dict[str, Any]:
    write_digits(tmp_path / "digits", 20)
    return {
        "run": {"name": "run", "storage": f"s3://{bucket}/runs"},
        "data": {"source": str(tmp_path / "digits"), "image_size": 32},
        "model": {"name": "reference/lenet", "weights": "none"},
        "train": {"epochs": 2, "global_batch": 16, "workers": 2, "chunk": 16, "checkpoint_every": 4},
    }


@dataclass
class Job:
    """A command with a temporary folder of its own, and every process that it ever had."""

    folder: Path
    process: subprocess.Popen[str]
    seen: set[psutil.Process] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        own = psutil.Process(self.process.pid)
        while not self._ended.wait(0.1):
            self.look(own)

    def look(self, own: psutil.Process) -> None:
        """Note the processes that it has now."""
        with contextlib.suppress(psutil.Error):
            self.seen |= set(own.children(recursive=True))

    def end(self) -> tuple[int, str]:
        """Wait for it: code, stderr."""
        _, err = self.process.communicate(timeout=200)
        self._ended.set()
        self._thread.join()
        return self.process.returncode, err

    def kill(self) -> None:
        """kill -9 of the driver alone, which leaves its children to themselves."""
        self.look(psutil.Process(self.process.pid))
        self.process.kill()
        self.end()

    def left(self) -> list[str]:
        """The processes that are there after GONE_S, and what lies in its temporary folder but for torch's cache."""
        _, alive = psutil.wait_procs(list(self.seen), timeout=GONE_S)
        return [process.name() for process in alive] + [
            str(path) for path in self.folder.iterdir() if not path.name.startswith("torchinductor_")
        ]


@pytest.fixture
def start(config: dict[str, Any], tmp_path: Path) -> Iterator[Callable[..., Job]]:
    """Starts a command; whatever it leaves goes with the test."""
    path = tmp_path / "config.yaml"
    path.write_text(json.dumps(config))
    jobs: list[Job] = []
    with tempfile.TemporaryDirectory(prefix="rc-", dir="/tmp") as folder:  # short: Ray puts sockets below it

        def begin(verb: str, *flags: str) -> Job:
            command = [sys.executable, "-m", "raycnn.cli", verb, str(path), "--json", *flags]
            pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
            process = subprocess.Popen(command, env=os.environ | {"TMPDIR": folder}, start_new_session=True, **pipes)
            jobs.append(Job(Path(folder), process))
            return jobs[-1]

        yield begin
        for job in jobs:
            for process in job.seen | {psutil.Process(job.process.pid)} if job.process.poll() is None else job.seen:
                with contextlib.suppress(psutil.Error):
                    process.kill()


def segments() -> set[str]:
    """What lies in shared memory and is used by nobody."""
    names = {path.name for path in Path("/dev/shm").iterdir()} if Path("/dev/shm").is_dir() else set()
    for process in psutil.process_iter():
        if names:
            with contextlib.suppress(psutil.Error, OSError):
                used = Path(f"/proc/{process.pid}/maps").read_text()
                names = {name for name in names if f"/dev/shm/{name}" not in used}
    return names


def wait_for_commit(job: Job, store: Store, folder: str) -> None:
    """Until a commit after step 0 is there."""
    while not any(
        entry.key.endswith("MANIFEST.json") and "step-00000000" not in entry.key for entry in store.list(folder)
    ):
        assert job.process.poll() is None, job.process.communicate()[1]


def check(job: Job, before: set[str], bucket: str) -> None:
    assert job.left() == []
    assert segments() <= before
    assert "Uploads" not in client().list_multipart_uploads(Bucket=bucket)
    assert len(job.seen) > 10  # it did look: Ray's own processes, workers, the keeper of the lease


def test_a_command_that_succeeds_leaves_nothing(start: Callable[..., Job], bucket: str) -> None:
    before = segments()
    for verb in ("train", "predict"):
        job = start(verb)
        code, err = job.end()
        assert code == 0, err
        check(job, before, bucket)


def test_a_command_that_fails_leaves_nothing(start: Callable[..., Job], bucket: str) -> None:
    before = segments()
    job = start("train", *(word for path, value in DIVERGING.items() for word in (f"--{path}", str(value))))
    code, err = job.end()
    assert code == 4, err
    check(job, before, bucket)


@pytest.mark.scenario("driver or head lost")
def test_a_killed_training_leaves_nothing(start: Callable[..., Job], bucket: str, seen: Any) -> None:
    before = segments()
    job = start("train", "--train.epochs", "500")
    wait_for_commit(job, open_store(f"s3://{bucket}/runs/run"), "checkpoints/")
    job.kill()
    check(job, before, bucket)
    seen.what = f"no process, file or segment is left within {GONE_S} s"


@pytest.mark.scenario("search driver killed")
def test_a_killed_search_leaves_nothing(start: Callable[..., Job], bucket: str, tmp_path: Path, seen: Any) -> None:
    before = segments()
    job = start("search", *SPACE, "--train.epochs", "200", "--cache.folder", str(tmp_path / "cache"))
    wait_for_commit(job, open_store(f"s3://{bucket}/runs/run"), "search/trials/")
    job.kill()
    check(job, before, bucket)
    seen.what = f"no process, file or segment is left within {GONE_S} s"


def test_in_a_cluster_that_goes_on_no_actor_and_no_placement_group_stays(config: dict[str, Any]) -> None:
    import ray

    assert not ray.is_initialized(), "another test's would not know the bucket"
    with connect():
        from ray._private.state import actors

        assert raycnn.train(config)["status"] == "finished"
        with pytest.raises(DivergedError):
            raycnn.train(raycnn.load_config(config, {"run.name": "diverging", **DIVERGING}))
        groups = [group["state"] for group in ray.util.placement_group_table().values()]
        assert set(groups) == {"REMOVED"}
        # Ray Data keeps actors of its own for the cluster's whole life
        alive = {actor["ActorClassName"] for actor in actors().values() if actor["State"] != "DEAD"}
        assert not alive & {"Monitor", "RayTrainWorker", "TrainController", "Pack", "Peer"}
