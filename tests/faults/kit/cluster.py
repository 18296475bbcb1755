"""A Ray cluster of several nodes on this machine, whose nodes can be killed, stopped, drained and added."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from tests.faults.kit.inside import ROOT
from tests.support.ray_head import RayHead, ray_head
from tests.support.waiting import wait_for

PROJECT = Path(__file__).parents[3]
HOOK = Path(__file__).parent / "hook"


@dataclass(frozen=True)
class Node:
    """A node beside the head: the session of processes that it began, and Ray's id of it."""

    starter: subprocess.Popen[bytes]
    id: str

    def processes(self) -> list[psutil.Process]:
        """Its living processes: raylet, agents, workers."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(OSError, psutil.Error):  # gone meanwhile
                if os.getsid(process.pid) == self.starter.pid and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def raylet(self) -> psutil.Process:
        """The process that the others of a cluster know it by."""
        return next(process for process in self.processes() if process.name() == "raylet")

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to all of it at once."""
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(number)


@dataclass
class FaultCluster:
    """A head, and nodes by their order of arrival."""

    head: RayHead
    nodes: list[Node] = field(default_factory=list)

    def add(self, num_cpus: int) -> Node:
        """Start a node and wait until the head knows it."""
        import ray

        before = {each["NodeID"] for each in ray.nodes()}
        command = [sys.executable, "-m", "tests.faults.kit.node", self.head.address, str(num_cpus)]
        path = self.head.temp_dir / f"node-{len(self.nodes)}.log"
        with path.open("wb") as log:
            starter = subprocess.Popen(
                command, env=self.head.environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
        try:
            (found,) = wait_for(lambda: living_nodes() - before, "a new node")
        except TimeoutError:
            starter.kill()
            starter.wait()
            raise RuntimeError(f"no node:\n{path.read_text(errors='replace')[-2000:]}") from None
        self.nodes.append(Node(starter, found))
        return self.nodes[-1]

    def kill(self, node: Node) -> None:
        """The machine is gone: kill -9 of all its processes. Ray finds out by itself."""
        while found := node.processes():
            node.signal(signal.SIGKILL)
            psutil.wait_procs(found, timeout=5)
        node.starter.wait()
        self.nodes.remove(node)

    def drain(self, node: Node, deadline_s: float) -> None:
        """Announce, as a cloud does for a spot instance, that the node will go."""
        from ray._raylet import GcsClient
        from ray.core.generated.autoscaler_pb2 import DrainNodeReason

        reason = DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
        when = int((time.time() + deadline_s) * 1000)
        accepted, why = GcsClient(address=self.head.address).drain_node(node.id, reason, "spot notice", when)
        assert accepted, why


def living_nodes() -> set[str]:
    """Ids of the nodes that Ray believes alive."""
    import ray

    return {each["NodeID"] for each in ray.nodes() if each["Alive"]}


@contextlib.contextmanager
def fault_cluster(faults: Path, nodes: Sequence[int] = (), head_cpus: int = 4) -> Iterator[FaultCluster]:
    """A cluster that this process is connected to; its workers obey and write below `faults`, see `history.Faults`.

    Args:
        faults: a folder.
        nodes: CPUs of each node beside the head.
        head_cpus: logical CPUs of the head.
    """
    from raycnn.cluster import connect

    path = os.pathsep.join([str(HOOK), str(PROJECT), *filter(None, [os.environ.get("PYTHONPATH")])])
    with _environment({"PYTHONPATH": path, ROOT: str(faults)}), ray_head(head_cpus) as head:
        token = {name: head.environment[name] for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH")}
        with _environment(token), _as_a_stranger(), connect(head.address):
            cluster = FaultCluster(head)
            try:
                for num_cpus in nodes:
                    cluster.add(num_cpus)
                yield cluster
            finally:
                for node in list(cluster.nodes):
                    cluster.kill(node)


@contextlib.contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _as_a_stranger() -> Iterator[None]:
    """What this process read of Ray's environment once is read anew: it may join other clusters before and after."""
    from ray._private import ray_constants
    from ray._raylet import AuthenticationTokenLoader

    loader: Any = AuthenticationTokenLoader.instance()
    before, ray_constants.ENABLE_RAY_CLUSTER = ray_constants.ENABLE_RAY_CLUSTER, False  # loopback stays loopback
    loader.reset_cache()
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before
        loader.reset_cache()
