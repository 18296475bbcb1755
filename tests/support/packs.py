"""The end of a pack, as a fault would bring it."""

from __future__ import annotations

import os
import signal

import psutil

from raycnn.searching import records
from tests.support.waiting import wait_for


def kill_a_pack(store):
    """kill -9 of an actor that trains, once one of a search's trials has been evaluated."""
    wait_for(lambda: any(record.evaluations for record in records.read_all(store)), "an evaluation")
    processes = psutil.Process().children(recursive=True)
    os.kill(next(p.pid for p in processes if "ray::Pack" in " ".join(p.cmdline())), signal.SIGKILL)
