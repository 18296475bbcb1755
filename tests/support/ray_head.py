"""A real `ray start --head` on loopback with token authentication, for tests; it leaves no process behind."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

MARK = "RAYCNN_TEST_RAY_HEAD"  # an environment variable that jobs inherit, which begin sessions of their own


@dataclass(frozen=True)
class RayHead:
    """A running head.

    `address` is for ray.init, `dashboard_url` for `ray job submit` and HTTP. `environment` is this process's with
    the token's file added, `without_token` the same without it (and without any other token of the user's).
    """

    address: str
    dashboard_url: str
    token_file: Path
    environment: dict[str, str]
    without_token: dict[str, str]
    temp_dir: Path


@contextlib.contextmanager
def ray_head(num_cpus: int = 4, *, start_timeout_s: float = 90.0) -> Iterator[RayHead]:
    """Start a head with `num_cpus` logical CPUs; at the end stop it by process id.

    Raises:
        RuntimeError: it did not start in time (with its last output), or a process outlived its end.
    """
    folder = Path(tempfile.mkdtemp(prefix="rh-", dir="/tmp"))  # short: Ray puts sockets below it
    try:
        head = _prepare(folder)
        log = folder / "start.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                _command(head, num_cpus),
                env=head.environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            _wait_until_ready(head, process, log, start_timeout_s)
            yield head
        finally:
            _stop(process, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def processes(head_pid: int, folder: Path) -> list[int]:
    """Ids of the living processes that a head started: those of its session, and jobs, known by their mark."""
    mark = f"{MARK}={folder}".encode()
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # gone meanwhile, or another user's
            state, _, _, session = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
            if state not in "ZX" and (
                int(session) == head_pid or mark in (entry / "environ").read_bytes().split(b"\0")
            ):
                found.append(int(entry.name))
    return found


def _prepare(folder: Path) -> RayHead:
    token_file = folder / "auth_token"
    token_file.touch(mode=0o600)
    token_file.write_text(secrets.token_hex(32))
    home = folder / "home"  # a user's own ~/.ray/auth_token must not decide a test
    home.mkdir()
    temporary = folder / "tmp"  # what a killed job leaves goes with the head
    temporary.mkdir()
    clean = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    clean |= {"HOME": str(home), "TMPDIR": str(temporary), "RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "token"}
    clean["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # else Ray puts the machine's own address in place of loopback
    gcs, dashboard = _free_ports(2)
    return RayHead(
        address=f"127.0.0.1:{gcs}",
        dashboard_url=f"http://127.0.0.1:{dashboard}",
        token_file=token_file,
        environment={**clean, "RAY_AUTH_TOKEN_PATH": str(token_file), MARK: str(folder)},
        without_token=clean,
        temp_dir=folder,
    )


def _command(head: RayHead, num_cpus: int) -> list[str]:
    client, agent, agent_grpc, runtime_env, metrics = _free_ports(5)
    options = {
        "node-ip-address": "127.0.0.1",
        "port": head.address.rpartition(":")[2],
        "dashboard-host": "127.0.0.1",
        "dashboard-port": head.dashboard_url.rpartition(":")[2],
        "include-dashboard": "true",
        "ray-client-server-port": client,
        "dashboard-agent-listen-port": agent,
        "dashboard-agent-grpc-port": agent_grpc,
        "runtime-env-agent-port": runtime_env,
        "metrics-export-port": metrics,
        "min-worker-port": 0,
        "max-worker-port": 0,
        "num-cpus": num_cpus,
        "object-store-memory": 200_000_000,
        "temp-dir": head.temp_dir / "ray",
    }
    ray = Path(sys.executable).with_name("ray")
    return [str(ray), "start", "--head", "--block", *(f"--{name}={value}" for name, value in options.items())]


def _wait_until_ready(head: RayHead, process: subprocess.Popen[bytes], log: Path, timeout_s: float) -> None:
    request = urllib.request.Request(f"{head.dashboard_url}/api/jobs/")
    request.add_header("Authorization", f"Bearer {head.token_file.read_text()}")
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(request, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise RuntimeError(f"no Ray head after {timeout_s:.0f} s:\n{log.read_text(errors='replace')[-3000:]}")


def _stop(process: subprocess.Popen[bytes], folder: Path) -> None:
    process.terminate()
    if not _gone(process, folder, 5):
        for pid in processes(process.pid, folder):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if not _gone(process, folder, 10):
            raise RuntimeError(f"processes of the Ray head are left: {processes(process.pid, folder)}")


def _gone(process: subprocess.Popen[bytes], folder: Path, timeout_s: float) -> bool:
    deadline = time.monotonic() + timeout_s
    while process.poll() is None or processes(process.pid, folder):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        taken = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in taken:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in taken]
