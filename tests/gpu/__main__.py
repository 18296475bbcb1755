"""python -m tests.gpu: the main job on all GPUs of this machine, a search, their parts' speeds; a report to share."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from raycnn.cluster import connect
from raycnn.progress import quiet_logs
from tests.bench.command import Row
from tests.bench.ingest import ingest
from tests.bench.training import first_step
from tests.gpu import job
from tests.gpu.case import on_cpus, on_gpus
from tests.gpu.machine import missing
from tests.gpu.report import markdown
from tests.gpu.speeds import speeds

OUT = Path(__file__).parent / "out"
MISSING = 2
MOST_GPUS = 8


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.gpu", description=__doc__)
    parser.add_argument("--cpu", action="store_true", help="the same steps, tiny, on CPUs: tests this script alone")
    parser.add_argument("--out", type=Path, default=OUT, help="folder of the report")
    options = parser.parse_args()
    if not options.cpu and (reason := missing()):
        print(f"gpu-check needs a GPU: {reason}", file=sys.stderr)
        sys.exit(MISSING)
    with tempfile.TemporaryDirectory(prefix="raycnn-gpu-") as folder:
        text = run(Path(folder), cpu=options.cpu)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "report.md").write_text(text)
    print(f"{text}\n{options.out / 'report.md'}", flush=True)


def run(folder: Path, *, cpu: bool) -> str:
    """The report; AssertionError where something is not as it must be."""
    seconds: dict[str, float] = {}
    rows: list[Row] = []

    @contextmanager
    def phase(name: str) -> Iterator[None]:
        print(f"==> {name}", file=sys.stderr, flush=True)
        start = time.perf_counter()
        yield
        seconds[name] = time.perf_counter() - start

    quiet_logs()
    workers = 1 if cpu else min(torch.cuda.device_count(), MOST_GPUS)
    with on_cpus(folder) if cpu else on_gpus(folder, workers) as case:
        with connect():
            with phase(f"main job on {workers} {'CPU' if cpu else 'GPU'}{'s' * (workers > 1)}"):
                rows += job.start(case)
            with phase("its second start"):
                rows += job.resume(case)
            with phase("evaluation"):
                rows += job.evaluate(case)
            with phase("search"):
                rows += job.search(case)
        with phase("speeds"):
            rows += speeds(case.search, torch.device("cpu" if cpu else "cuda"))
    for bench in () if cpu else (first_step, ingest):  # the other rows are of CPUs on either side
        with phase(f"bench: {bench.__name__}"):
            (folder / bench.__name__).mkdir()
            rows += bench(folder / bench.__name__)
    return markdown(rows, seconds)


if __name__ == "__main__":
    main()
