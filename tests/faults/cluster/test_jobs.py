"""The job itself is killed, asked to leave, put to sleep, started twice; its head is lost."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psutil
import pytest

from raycnn.config import Config
from raycnn.storage.lease import read_lease
from raycnn.training import checkpoint
from tests.faults.kit import checker
from tests.faults.kit.cluster import PROJECT, FaultCluster
from tests.faults.kit.history import History
from tests.faults.kit.jobs import Bench, Undisturbed, finish
from tests.faults.kit.scenarios import Seen
from tests.support.ray_head import RayHead, processes, ray_head
from tests.support.runs import final_hashes
from tests.support.waiting import wait_for

pytestmark = pytest.mark.slow
Promises = Callable[[Config], History]
Start = Callable[[Config], subprocess.Popen[str]]


@pytest.fixture
def start(cluster: FaultCluster, bench: Bench) -> Iterator[Start]:
    """Starts jobs; what is left of them at the end goes."""
    jobs = []

    def begin(config: Config) -> subprocess.Popen[str]:
        jobs.append(bench.start(config, cluster.head.address, cluster.head.environment))
        return jobs[-1]

    yield begin
    for job in jobs:
        job.kill()
        job.communicate()


@pytest.mark.scenario("driver or head lost")
def test_sigterm_then_kill_9_of_the_driver(
    start: Start, bench: Bench, undisturbed: Undisturbed, promises: Promises, seen: Seen
) -> None:
    config = bench.config("driver", 1)
    faults = bench.faults_of(config)
    job = start(config)
    with faults.paused(7):
        faults.caused("SIGTERM", announced=True)
        job.send_signal(signal.SIGTERM)
        time.sleep(1.5)  # rank 0 asks twice a second
    told = finish(job, code=75)
    assert told["status"] == "preempted"
    assert told["steps"] == 8

    job = start(config)
    with faults.paused(12):
        faults.caused("kill -9 of the driver")
        job.kill()
        job.wait()
    assert finish(start(config))["status"] == "finished"
    assert {each.step for each in promises(config).starts} >= {0, 8}
    assert checker.other_bits(final_hashes(bench.store(config)), undisturbed(1)) == []
    seen.what = "SIGTERM: code 75, no step again; kill -9: the same command goes on; same bits"


@pytest.mark.scenario("SIGTERM, spot notice")
def test_a_second_sigterm_during_the_save(start: Start, bench: Bench, undisturbed: Undisturbed, seen: Seen) -> None:
    config = bench.config("impatient", 1)
    faults = bench.faults_of(config)
    job = start(config)
    with faults.paused(10, at="commit"):
        job.send_signal(signal.SIGTERM)
        time.sleep(1.5)
        job.send_signal(signal.SIGTERM)
        assert job.wait(timeout=60) == 75
    store = bench.store(config)
    newest = checkpoint.latest(store, read_lease(store))
    assert newest is not None
    assert newest.step == 7  # the evaluation's
    assert finish(start(config))["status"] == "finished"
    assert checker.other_bits(final_hashes(store), undisturbed(1)) == []
    seen.what = "leaves at once, the commit before is intact; the same command goes on; same bits"


@pytest.mark.scenario("two jobs, one name")
def test_a_second_job_and_an_owner_that_sleeps(
    start: Start, bench: Bench, undisturbed: Undisturbed, promises: Promises, seen: Seen
) -> None:
    config = bench.config("two", 1)
    faults, store = bench.faults_of(config), bench.store(config)
    owner = start(config)
    with faults.paused(7):
        began = time.monotonic()
        assert finish(start(config), code=6)["error"]["code"] == 6
        refused_s = time.monotonic() - began
        first = read_lease(store).owner
        asleep = [psutil.Process(owner.pid), *psutil.Process(owner.pid).children(recursive=True)]
        for process in asleep:
            process.send_signal(signal.SIGSTOP)
        faults.caused("the owner sleeps")
        other = start(config)
        wait_for(lambda: read_lease(store).owner != first, "that the lease is taken over")
    for process in asleep:  # the old rank has gone on, and so does the old driver
        process.send_signal(signal.SIGCONT)
    assert finish(owner, code=6)["error"]["code"] == 6
    assert finish(other)["status"] == "finished"
    history = promises(config)
    assert checker.two_writers(history, [refused_s]) == []
    assert checker.other_bits(final_hashes(store), undisturbed(1)) == []
    seen.what = f"second job: code 6 after {refused_s:.1f} s; the sleeper is fenced out, code 6; same bits"


@contextmanager
def submitted(head: RayHead, config: Config, *options: str) -> Iterator[subprocess.Popen[str]]:
    """`ray job submit` of the project's working directory."""
    code = head.temp_dir / "code"
    for part in ("raycnn", "jobs"):
        shutil.copytree(PROJECT / part, code / part, ignore=shutil.ignore_patterns("__pycache__"))
    (code / "run.yaml").write_text(json.dumps(config.model_dump(mode="json")))
    ray = [sys.executable.rpartition("/")[0] + "/ray", "job", "submit", "--working-dir", str(code), *options]
    environment = head.environment | {"RAY_ADDRESS": head.dashboard_url}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    job = subprocess.Popen(
        [*ray, "--", sys.executable, "jobs/train.py", "run.yaml", "--json"], env=environment, **pipes
    )
    try:
        yield job
    finally:
        job.kill()
        job.communicate()


@pytest.mark.scenario("driver or head lost")
def test_the_head_is_lost_under_a_submitted_job(
    cluster: FaultCluster, bench: Bench, undisturbed: Undisturbed, promises: Promises, seen: Seen
) -> None:
    config = bench.config("submitted", 2)
    faults = bench.faults_of(config)
    with ray_head() as head, submitted(head, config), faults.paused(9, timeout_s=150):
        faults.caused("kill -9 of the head and all of its processes")
        for pid in processes(-1, head.temp_dir):
            os.kill(pid, signal.SIGKILL)
    with ray_head() as head, submitted(head, config) as job:
        output, _ = job.communicate(timeout=150)
        assert job.returncode == 0, output
    assert '"status": "finished"' in output
    promises(config)
    assert checker.other_bits(final_hashes(bench.store(config)), undisturbed(2)) == []
    seen.what = "submitted again on a new head: same bits"
