"""python -m tests.bench.pipelines NAME SOURCE: one JSON line of {steady, whole}, images a second.

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


def main() -> None:
    name, *rest = sys.argv[1:]
    start = time.perf_counter()
    if name == "write":
        from tests.bench.pipelines.peers import WRITERS

        peer, folder, target = rest
        WRITERS[peer](sorted(Path(folder).rglob("*.jpg")), target)
        return
    print(json.dumps(rates(side(name, rest[0]), start)), flush=True)


def side(name: str, source: str) -> Iterator[int]:
    if name in ("raycnn", "threads", "limit"):
        from tests.bench.pipelines import ours

        found: Iterator[int] = getattr(ours, name)(source)
    else:
        from tests.bench.pipelines import peers

        found = getattr(peers, name)(source)
    return found


def rates(batches: Iterator[int], start: float) -> dict[str, float]:
    """Images a second once WARM have come, and from the start of the process's work."""
    done, counted, since = 0, 0, None
    for size in batches:
        done += size
        if since is not None:
            counted += size
        elif done >= WARM:
            since = time.perf_counter()
    assert since is not None, "too few images"
    end = time.perf_counter()
    return {"steady": counted / (end - since), "whole": done / (end - start)}


if __name__ == "__main__":
    main()
