"""Nodes that are drained, lost and cut off, under a run on two ranks."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest

import raycnn
from raycnn.cluster import draining
from raycnn.config import Config
from tests.faults.kit import checker
from tests.faults.kit.cluster import FaultCluster, Node, fault_cluster
from tests.faults.kit.history import Faults, History
from tests.faults.kit.jobs import Bench
from tests.faults.kit.scenarios import Seen
from tests.support.waiting import wait_for

pytestmark = pytest.mark.slow
Promises = Callable[[Config], History]


@pytest.fixture(scope="module")
def cluster(bench: Bench) -> Iterator[FaultCluster]:
    """A head without CPUs, so that all ranks and decoding tasks are on the other nodes."""
    with fault_cluster(bench.faults, head_cpus=0) as running:
        yield running


@pytest.fixture
def nodes(cluster: FaultCluster) -> list[Node]:
    """Two nodes of two CPUs, whatever the test before did to them."""
    for node in [node for node in cluster.nodes if node.id in draining()]:
        cluster.kill(node)
    while len(cluster.nodes) < 2:
        cluster.add(2)
    return cluster.nodes


@dataclass(frozen=True)
class Training:
    """A run in the background: the result to come, and what is said meanwhile."""

    config: Config
    faults: Faults
    result: Future[Any]
    said: list[str]

    def finish(self) -> None:
        assert self.result.result(timeout=120)["status"] == "finished"


Train = Callable[[str], Training]


@pytest.fixture
def train(nodes: list[Node], bench: Bench) -> Iterator[Train]:
    """Trains on two ranks."""
    with ThreadPoolExecutor(1) as thread:

        def start(name: str) -> Training:
            config, said = bench.config(name, 2), list[str]()
            result = thread.submit(raycnn.train, config, show=lambda _, lines: said.extend(lines))
            return Training(config, bench.faults_of(config), result, said)

        yield start


def places(cluster: FaultCluster, faults: Faults) -> list[tuple[int, Node]]:
    """(lease epoch, node) of each rank that started, in order of time; of those whose process still lives."""
    at = {process.pid: node for node in cluster.nodes for process in node.processes()}
    starts = [line for line in faults.lines() if line["kind"] == "start"]
    return [
        (line["epoch"], at[line["pid"]])
        for line in sorted(starts, key=lambda s: (s["epoch"], s["rank"]))
        if line["pid"] in at
    ]


@pytest.mark.scenario("SIGTERM, spot notice")
def test_a_node_is_drained(cluster: FaultCluster, train: Train, promises: Promises, seen: Seen) -> None:
    job = train("drained")
    with job.faults.paused(7):
        first = places(cluster, job.faults)
        going = first[0][1]
        job.faults.caused("drain", announced=True)
        cluster.drain(going, deadline_s=60)
        time.sleep(1.5)  # a rank looks twice a second
    with job.faults.paused(15):
        rest = [node.id for epoch, node in places(cluster, job.faults) if epoch > first[0][0]]
    job.finish()
    history = promises(job.config)
    assert {start.step for start in history.starts} == {0, 8}
    assert len(rest) == 2
    assert going.id not in rest
    assert any("a node will be taken away" in line for line in job.said)
    seen.what = "commits after the step in flight, goes on with the other node"


@pytest.mark.scenario("node lost")
def test_a_node_is_lost(cluster: FaultCluster, train: Train, promises: Promises, seen: Seen) -> None:
    job = train("node-lost")
    with job.faults.paused(7):
        job.faults.caused("node lost")
        cluster.kill(places(cluster, job.faults)[0][1])
    job.finish()
    promises(job.config)
    assert any("a worker was lost; going on from the newest checkpoint" in line for line in job.said)
    seen.what = "goes on with the other node"


@pytest.mark.scenario("node lost")
def test_the_only_node_is_lost(
    cluster: FaultCluster, nodes: list[Node], train: Train, promises: Promises, seen: Seen
) -> None:
    cluster.kill(nodes[1])
    job = train("all-lost")
    with job.faults.paused(7):
        cluster.kill(cluster.nodes[0])
    waits = "waiting, since 2 workers do not fit"
    wait_for(lambda: any(waits in line for line in job.said), "that it waits")
    cluster.add(2)
    job.faults.caused("a node came")  # provisioning aside
    job.finish()
    promises(job.config)
    seen.what = "says that it waits, and goes on when a node comes"


@pytest.mark.scenario("network cut")
def test_a_raylet_is_cut_off_for_30_s(cluster: FaultCluster, train: Train, promises: Promises, seen: Seen) -> None:
    job = train("cut")
    with job.faults.paused(7):
        raylet = places(cluster, job.faults)[0][1].raylet()
        job.faults.caused("cut")
        raylet.send_signal(signal.SIGSTOP)
        time.sleep(30)
        raylet.send_signal(signal.SIGCONT)
    job.finish()
    history = promises(job.config)
    assert checker.two_writers(history) == []
    seen.what = f"{len({start.epoch for start in history.starts})} groups; every step and commit once"
