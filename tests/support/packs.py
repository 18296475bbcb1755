"""The end of a pack, as a fault would bring it."""

from __future__ import annotations

import os
import signal
import time

import psutil

from raycnn.searching import records


def kill_a_pack(store):
    """kill -9 of an actor that trains, once one of a search's trials has been evaluated."""
    deadline = time.monotonic() + 120
    while not any(record.evaluations for record in records.read_all(store)):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    processes = psutil.Process().children(recursive=True)
    os.kill(next(p.pid for p in processes if "ray::Pack" in " ".join(p.cmdline())), signal.SIGKILL)
