"""How the index, its table and the plan grow with the number of rows."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from raycnn.data.manifest import SCHEMA, Index, read_index
from raycnn.data.plan import Plan
from raycnn.data.reader import COLUMNS
from raycnn.storage import open_store
from raycnn.training.setup import INDEX_COLUMNS
from tests.bench.growth.decoding import indexed
from tests.bench.pictures import write_tree

INDEXED = (1000, 10_000, 100_000)
PLANNED = (1000, 100_000, 10_000_000)
BLOCK = 256


def measure(root: Path) -> dict[str, list[dict[str, float]]]:
    """Indexing images of 32 px, reading the index as a rank does, and the rows of a block of the plan."""
    from raycnn.cluster import connect

    found: dict[str, list[dict[str, float]]] = {"index": [], "plan": [_plan(rows) for rows in PLANNED]}
    for rows in INDEXED:
        write_tree(root / f"images-{rows}", rows, width=32, height=32, quality=70)
    with connect():
        indexed(str(root / f"images-{INDEXED[0]}"), str(root / "warm"))
        for rows in INDEXED:
            source, storage = str(root / f"images-{rows}"), str(root / f"runs-{rows}")
            index, first_s = timed(lambda s=source, t=storage: indexed(s, t))
            _, again_s = timed(lambda s=source, t=storage: indexed(s, t))
            found["index"].append({"rows": rows, "first_s": first_s, "again_s": again_s, **_reading(index, storage)})
    return found


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    start = time.perf_counter()
    done = work()
    return done, time.perf_counter() - start


def _reading(index: Index, storage: str) -> dict[str, float]:
    """Bytes of a row in the store and in the memory of a rank, and seconds to read the index and a block's rows."""
    files = [entry.size for entry in open_store(storage).list(f"index/{index.hash}/")]
    read, read_s = timed(lambda: read_index(open_store(storage), index.hash, INDEX_COLUMNS))
    table: pa.Table = read.rows("train").select(COLUMNS)
    picked = np.random.default_rng(0).integers(0, len(table), BLOCK)
    _, take_s = timed(lambda: table.take(picked).to_pylist())
    return {
        "stored_bytes": sum(files) / len(index.manifest),
        "table_bytes": table.nbytes / len(table),
        "whole_bytes": index.manifest.select(SCHEMA.names).nbytes / len(index.manifest),
        "read_s": read_s,
        "take_s": take_s,
    }


def _plan(rows: int) -> dict[str, float]:
    plan = Plan(rows, BLOCK, 0)
    _, seconds = timed(lambda: [plan.share(step) for step in range(100)])
    return {"rows": rows, "block_s": seconds / 100}
