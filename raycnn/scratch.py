"""A temporary folder that goes with its process, even one that is killed, and so does whoever still writes there.

Ray's agents outlive a killed driver by half a minute and its session folder stays for ever. So a process of its own,
`python scratch.py FOLDER`, waits for the end of the one that started it, and sweeps.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

_ROUNDS, _ROUND_S = 50, 0.2


@contextlib.contextmanager
def scratch() -> Iterator[str]:
    """A new temporary folder; afterwards it and the processes that have files in it open for writing are gone."""
    folder = tempfile.mkdtemp(prefix="raycnn-")
    # a session of its own, so that no Ctrl-C and no kill of the process group reaches it
    command = [sys.executable, "-I", "-S", __file__, folder]
    with subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True) as sweeper:
        try:
            yield folder
        finally:
            assert sweeper.stdin is not None
            with contextlib.suppress(OSError):  # somebody has killed it
                sweeper.stdin.write(b".")  # a forked process may hold the pipe open too
                sweeper.stdin.close()
            if sweeper.wait():
                sweep(folder)


def sweep(folder: str) -> None:
    """Kill who writes below the folder, and remove it, until both are done."""
    below = os.path.realpath(folder) + os.sep
    for _ in range(_ROUNDS):
        spared = os.getpid(), os.getppid()
        writing = [pid for pid in _processes() if pid not in spared and _writes(pid, below)]
        for pid in writing:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        shutil.rmtree(folder, ignore_errors=True)
        if not writing and not os.path.exists(folder):
            return
        time.sleep(_ROUND_S)


def _processes() -> list[int]:
    try:
        return [int(name) for name in os.listdir("/proc") if name.isdecimal()]
    except OSError:  # no Linux
        return []


def _writes(pid: int, below: str) -> bool:
    with contextlib.suppress(OSError):  # it has ended, or is another user's
        for file in Path(f"/proc/{pid}/fd").iterdir():
            if os.readlink(file).startswith(below) and file.lstat().st_mode & 0o200:
                return True
    return False


def main(folder: str) -> None:
    """Wait until told to, or until the other end of stdin is closed; then sweep."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # supervisors signal the whole tree
        signal.signal(number, signal.SIG_IGN)
    sys.stdin.buffer.read(1)
    sweep(folder)


if __name__ == "__main__":
    main(sys.argv[1])
