"""Work on hostile bytes in a process of its own: what it said, used and did, and whether it lived.

    outcomes = confined("tests.faults.kit.confined:images")

The child is stopped after `cpu_s` seconds of computing on one case, cannot map more than MEMORY above what it has at
the start, and reports what it opened, started, connected to or compiled. One that dies is started again behind the
case that killed it.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

MEMORY = 256 * 2**20
CPU_S = 5.0
_SLACK = 64 * 2**20  # address space beside the memory in use
_EVENTS = ("open", "exec", "compile", "import", "os.", "subprocess.", "socket.", "ctypes.", "pickle.", "shutil.")

Job = tuple[str, Callable[[], Callable[[], str]]]
"""A case's name, and what prepares it: its result is the work, which gives a verdict."""


@dataclass(frozen=True)
class Outcome:
    """Of one case: its verdict ("died: signal 27" for a dead child), CPU seconds, peak of memory, audit events."""

    verdict: str
    cpu_s: float = 0.0
    peak: int = 0
    events: tuple[str, ...] = ()


def confined(jobs: str, *arguments: str, cpu_s: float = CPU_S, wall_s: float = 120.0) -> dict[str, Outcome]:
    """The outcome of every case of `module:function(*arguments)`, which gives Jobs, by name."""
    found: dict[str, Outcome] = {}
    environment = os.environ | {"ARROW_DEFAULT_MEMORY_POOL": "system"}  # the others map more than they use
    until, skip = time.monotonic() + wall_s, 0
    while True:
        command = [sys.executable, "-m", __name__, str(skip), str(cpu_s), jobs, *arguments]
        left_s = until - time.monotonic()
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=left_s, env=environment)
        started = ""
        for line in done.stdout.splitlines():
            told = json.loads(line)
            if "start" in told:
                started, skip = told["start"], skip + 1
            else:
                told["events"] = tuple(told["events"])
                found[started], started = Outcome(**told), ""
        if done.returncode == 0:
            return found
        assert started, done.stderr
        found[started] = Outcome(f"died: signal {-done.returncode}")


def _child(skip: int, limit_s: float, jobs: str, arguments: list[str]) -> None:
    module, _, name = jobs.partition(":")
    listed: Iterator[Job] = getattr(importlib.import_module(module), name)(*arguments)
    seen: list[str] = []
    watching = False

    def hook(event: str, _: tuple[object, ...]) -> None:
        if watching and event.startswith(_EVENTS):
            seen.append(event)

    sys.addaudithook(hook)
    for name, prepare in islice(listed, skip, None):
        work = prepare()
        print(json.dumps({"start": name}), flush=True)
        base = _peak_from_here()
        resource.setrlimit(resource.RLIMIT_AS, (_status("VmSize") + MEMORY + _SLACK, resource.RLIM_INFINITY))
        signal.setitimer(signal.ITIMER_PROF, limit_s)  # its signal ends the process, in whatever C code it is
        began, watching = time.process_time(), True
        try:
            verdict = work()
        except BaseException as error:
            verdict = f"raised {type(error).__name__}: {error}"
        watching = False
        cpu_s = time.process_time() - began
        signal.setitimer(signal.ITIMER_PROF, 0)
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        outcome = Outcome(verdict, cpu_s, _status("VmHWM") - base, tuple(sorted(set(seen))))
        seen.clear()
        print(json.dumps(asdict(outcome)), flush=True)


def _peak_from_here() -> int:
    """Resets the peak of resident memory; what is resident now."""
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmHWM")


def _status(name: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


# ---- what is done in there ----


def images(count: str = "0", seed: str = "0") -> Iterator[Job]:
    """The corpus, or `count` mutated files, through `decode` under the default limits."""
    from raycnn.config import DataConfig
    from raycnn.data.decode import BadImage, Limits, decode
    from tests.faults.kit.corpus import CORPUS, mutated
    from tests.support.images import GOOD

    fields = DataConfig.model_fields
    limits = Limits(fields["max_pixels"].default, fields["max_bytes"].default)

    def job(data: bytes) -> Callable[[], str]:
        def work() -> str:
            try:
                image = decode(data, limits)
            except BadImage as bad:
                return bad.reason
            return f"{image.mode} {image.width}x{image.height}"

        return work

    for make, _, _ in GOOD.values():
        with contextlib.suppress(BadImage):
            decode(make(0), limits)  # Pillow imports its parts when they are first used
    if int(count):
        for number, data in enumerate(mutated(int(count), int(seed))):
            yield f"mutated {number}", lambda data=data: job(data)  # type: ignore[misc]
    else:
        for case in CORPUS:
            yield case.name, lambda case=case: job(case.make())  # type: ignore[misc]


def misdeeds() -> Iterator[Job]:
    """What the confinement must see."""

    def hog(touch: bool) -> str:
        size = MEMORY + 8 * 2**20
        return str(len(b"x" * size if touch else bytearray(4 * size)))

    def spin() -> str:
        while True:
            pass

    yield "touches too much", lambda: lambda: hog(True)
    yield "maps too much", lambda: lambda: hog(False)
    yield "hangs", lambda: spin
    yield "hangs in C", lambda: lambda: str(sum(range(10**12)))
    yield "opens a file", lambda: lambda: Path("/dev/null").read_text()
    yield "runs code", lambda: lambda: str(eval("1 + 1"))
    yield "is good", lambda: lambda: "fine"


if __name__ == "__main__":
    _child(int(sys.argv[1]), float(sys.argv[2]), sys.argv[3], sys.argv[4:])
