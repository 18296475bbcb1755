"""python -m tests.bench.pipelines NAME SOURCE: one JSON line of {steady, whole}, images a second.

paced SOURCE RATE: raycnn's stream for one that takes RATE images a second; and {waited}, the share of steps that did.
write NAME FOLDER TARGET: the images of a folder in the format of a peer.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

WARM = 1024
"""Images that come before the steady state is counted."""
WARM_PACED = 4096
"""More of them, since one that takes less than there is waits until a block or two are ahead of it."""


def main() -> None:
    name, *rest = sys.argv[1:]
    start = time.perf_counter()
    if name == "write":
        from tests.bench.pipelines.peers import WRITERS

        peer, folder, target = rest
        WRITERS[peer](sorted(Path(folder).rglob("*.jpg")), target)
        return
    print(json.dumps(paced(*rest, start) if name == "paced" else rates(side(name, rest[0]), start)), flush=True)


def paced(index: str, rate: str, start: float) -> dict[str, float]:
    from tests.bench.pipelines import BATCH, ours

    late: list[float] = []
    found = rates(ours.paced(index, float(rate), late), start, WARM_PACED)
    steady = late[WARM_PACED // BATCH :]
    return found | {"waited": sum(seconds > 0 for seconds in steady) / len(steady)}


def side(name: str, source: str) -> Iterator[int]:
    if name in ("raycnn", "neighbours", "threads", "limit"):
        from tests.bench.pipelines import ours

        found: Iterator[int] = getattr(ours, name)(source)
    else:
        from tests.bench.pipelines import peers

        found = getattr(peers, name)(source)
    return found


def rates(batches: Iterator[int], start: float, warm: int = WARM) -> dict[str, float]:
    """Images a second from when `warm` have come, and from the start of the process's work, to the last batch."""
    done, counted, since, end = 0, 0, 0.0, start
    for size in batches:
        done, end = done + size, time.perf_counter()
        if since:
            counted += size
        elif done >= warm:
            since = end
    assert counted, "too few images"
    return {"steady": counted / (end - since), "whole": done / (end - start)}


if __name__ == "__main__":
    main()
