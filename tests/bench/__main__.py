"""python -m tests.bench [ROWS...]: one table; every ratio's two sides were measured in this run."""

from __future__ import annotations

import argparse
import sys
import tempfile
from functools import partial
from pathlib import Path

from tests.bench.frozen import frozen_prefix
from tests.bench.ingest import ingest
from tests.bench.promises import exact, promises
from tests.bench.search import search
from tests.bench.table import markdown, plot
from tests.bench.throughput import two_ranks, with_ingest
from tests.bench.training import first_step, large_index, memory

OUT = Path(__file__).parent / "out"
MEASURES = (
    first_step, ingest, with_ingest, two_ranks, frozen_prefix, memory, large_index, promises, exact, search,
)  # fmt: skip


def main() -> None:
    measures = {each.__name__: each for each in MEASURES}
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=main.__doc__)
    parser.add_argument("rows", nargs="*", metavar="ROWS", help=f"which to measure: {', '.join(measures)}")
    parser.add_argument("--full", action="store_true", help="search: every trial of plain Ray too, half an hour more")
    parser.add_argument("--check", action="store_true", help="search: compare losses bit by bit, some minutes more")
    options = parser.parse_args()
    if unknown := set(options.rows) - measures.keys():
        parser.error(f"unknown rows: {', '.join(unknown)}")
    measures["search"] = partial(search, full=options.full, check=options.check)
    rows = []
    for name in options.rows or measures:
        print(f"==> {name}", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory(prefix="raycnn-bench-") as folder:
            rows += measures[name](Path(folder))
        OUT.mkdir(exist_ok=True)  # after each, since an hour may be cut short
        (OUT / "table.md").write_text(markdown(rows))
        plot(rows, OUT / "table.svg")
    print(f"\n{markdown(rows)}\n{OUT}: table.md, table.svg", flush=True)


if __name__ == "__main__":
    main()
