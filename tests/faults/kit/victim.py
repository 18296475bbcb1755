"""Processes that do one thing and are killed, kill -9, at a chosen request or file system call."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from tests.faults.kit.http_faults import Stall
from tests.faults.kit.proxy import Proxy, Rule

_FORKS: Final = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["tests.faults.kit.operations"])  # else each would import torch and Ray anew
_CHANGES: Final = frozenset(("os.link", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.symlink", "os.utime"))
_WRITING: Final = os.O_WRONLY | os.O_RDWR | os.O_CREAT
_TIMEOUT_S: Final = 60

Work = Callable[..., object]


def run(work: Work, *arguments: Any) -> None:
    """Do it in a process of its own, to its end. `work` and `arguments` travel by pickle."""
    process = _started(work, arguments, None, 0)
    process.join(_TIMEOUT_S)
    assert process.exitcode == 0, process.exitcode


def num_requests(proxy: Proxy, work: Work, *arguments: Any) -> int:
    """How many requests it sends when nothing fails."""
    before = len(proxy.journal)
    run(work, *arguments)
    return len(proxy.journal) - before


def kill_at_request(proxy: Proxy, number: int, late: bool, work: Work, *arguments: Any) -> None:
    """Kill it when its request `number`, from 1, has not reached the server yet; late: when it took effect there."""
    stall = Stall(late)
    proxy.rules = [Rule(stall, nth=number)]
    process = _started(work, arguments, None, 0)
    end = time.monotonic() + _TIMEOUT_S
    while not stall.reached.wait(0.01):
        assert process.is_alive(), f"it ended before request {number}"
        assert time.monotonic() < end
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join(_TIMEOUT_S)
    proxy.rules = []
    stall.freed.set()


def num_calls(root: Path, work: Work, *arguments: Any) -> int:
    """How many calls change something below `root` when nothing fails."""
    receiver, sender = _FORKS.Pipe(duplex=False)
    process = _started(work, arguments, root, sender)
    process.join(_TIMEOUT_S)
    assert process.exitcode == 0, process.exitcode
    return int(receiver.recv())


def kill_at_call(root: Path, number: int, work: Work, *arguments: Any) -> None:
    """Kill it just before its call `number`, from 1, that changes something below `root`."""
    process = _started(work, arguments, root, number)
    process.join(_TIMEOUT_S)
    assert process.exitcode == -signal.SIGKILL, process.exitcode


def _started(work: Work, arguments: tuple[Any, ...], root: Path | None, at: Any) -> Any:
    process = _FORKS.Process(target=_main, args=(dict(os.environ), root, at, work, arguments), daemon=True)
    process.start()
    return process


def _main(environment: dict[str, str], root: Path | None, at: Any, work: Work, arguments: tuple[Any, ...]) -> None:
    os.environ.clear()  # the fork server's is as old as itself
    os.environ.update(environment)
    calls = 0

    def count(event: str, about: tuple[Any, ...]) -> None:
        nonlocal calls
        if event in _CHANGES or (event == "open" and about[2] & _WRITING):
            paths = (os.fspath(path) for path in about if isinstance(path, str | Path))
            if any(str(path).startswith(str(root)) for path in paths):
                calls += 1
                if calls == at:
                    os.kill(os.getpid(), signal.SIGKILL)

    if root is not None:
        os.fsync = lambda descriptor: None  # type: ignore[assignment]  # processes die here, machines do not
        sys.addaudithook(count)
    work(*arguments)
    if root is not None and not isinstance(at, int):
        at.send(calls)
