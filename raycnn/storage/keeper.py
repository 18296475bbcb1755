"""The process that beats for a lease: `python -m raycnn.storage.keeper URI OWNER BEAT_S`.

A process of its own, so that no busy trainer starves it. It leaves when its stdin closes, which the death of its
parent does too, and when another job has taken the lease over (code 6). A store that does not answer is tried again.
"""

from __future__ import annotations

import select
import signal
import sys

from raycnn.errors import RaycnnError, StorageError
from raycnn.storage.base import open_store
from raycnn.storage.lease import beat


def main(uri: str, owner: str, beat_s: str) -> int:
    """Beat until told to leave; gives back the exit code."""
    for number in (signal.SIGINT, signal.SIGTERM):  # `ray job stop` and supervisors signal the whole tree
        signal.signal(number, signal.SIG_IGN)
    store = open_store(uri, deadline_s=10)
    while not select.select([sys.stdin], [], [], float(beat_s))[0]:
        try:
            beat(store, owner)
        except StorageError:
            continue
        except RaycnnError as error:
            return error.code
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
