"""Faults composed by chance from a seed, against a job on a cluster; the promises are checked on what happened.

python -m tests.faults.kit.nemesis --seeds 20 [--first 0]
"""

from __future__ import annotations

import argparse
import contextlib
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from raycnn.config import Config
from raycnn.storage.lease import read_lease
from raycnn.training import checkpoint
from tests.faults.kit import checker
from tests.faults.kit.cluster import FaultCluster, fault_cluster
from tests.faults.kit.history import Faults
from tests.faults.kit.jobs import EVERY, Bench, Undisturbed, finish, plan_of
from tests.support.digits import write_digits
from tests.support.runs import final_hashes

STEPS = 20
OF_A_RANK = ("kill", "kill in commit", "stop")
OF_THE_JOB = ("kill -9 of the driver", "SIGTERM")
Weather = Callable[[random.Random], AbstractContextManager[None]]


@dataclass(frozen=True)
class Blow:
    """One fault: at which step, of which rank if it is a rank's."""

    name: str
    step: int
    rank: int = 0


def compose(seed: int) -> tuple[int, list[Blow]]:
    """World size and two or three faults; at most two of ranks, since three without a commit between end a run."""
    draw = random.Random(seed)
    world = draw.choice((1, 2))
    names = draw.sample(OF_A_RANK, draw.choice((1, 2))) + draw.sample(OF_THE_JOB, 1)
    steps = sorted(draw.sample(range(STEPS), len(names)))
    draw.shuffle(names)
    blows = [Blow(name, step, draw.randrange(world)) for name, step in zip(names, steps, strict=True)]
    return world, [Blow(b.name, EVERY * (1 + b.step // EVERY)) if b.name == "kill in commit" else b for b in blows]


def torment(config: Config, blows: list[Blow], bench: Bench, cluster: FaultCluster, samples: list[bool]) -> None:
    """Run the job to its end, through all the faults, by the same command again and again."""
    faults = bench.faults_of(config)
    for blow in (blow for blow in blows if blow.name in OF_A_RANK):
        at = "commit" if blow.name == "kill in commit" else "step"
        faults.order(blow.name.split()[0], blow.step, blow.rank, at=at)
    with _watched(config, bench, samples), contextlib.ExitStack() as jobs:

        def start() -> subprocess.Popen[str]:
            job = bench.start(config, cluster.head.address, cluster.head.environment)
            jobs.callback(_end, job)
            return job

        job = start()
        for blow in (blow for blow in blows if blow.name in OF_THE_JOB):
            _strike(blow, job, faults)
            job = start()
        finish(job)


def _strike(blow: Blow, job: subprocess.Popen[str], faults: Faults) -> None:
    announced = blow.name == "SIGTERM"
    with faults.paused(blow.step, timeout_s=240):
        faults.caused(blow.name, announced=announced)
        job.send_signal(signal.SIGTERM if announced else signal.SIGKILL)
        time.sleep(1.5 if announced else 0)  # rank 0 asks twice a second
    if announced:
        finish(job, code=75)


@contextmanager
def _watched(config: Config, bench: Bench, samples: list[bool]) -> Iterator[None]:
    """Inside, look again and again whether there is a valid checkpoint (P6)."""
    done, store = threading.Event(), bench.store(config)

    def look() -> None:
        while not done.wait(1.0):
            samples.append(checkpoint.latest(store, read_lease(store)) is not None)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _end(job: subprocess.Popen[str]) -> None:
    job.kill()
    job.communicate()


def run(
    seed: int, bench: Bench, cluster: FaultCluster, undisturbed: Undisturbed,
    weather: Weather | None = None,
) -> tuple[str, list[str], list[float]]:  # fmt: skip
    """One seed: what was done, which promises were broken, seconds to recover.

    Args:
        seed: names the faults.
        bench: where the run lies.
        cluster: where it runs.
        undisturbed: by world size, what the run must end with.
        weather: something that goes on all the while, as faults of the object store.
    """
    world, blows = compose(seed)
    config, samples = bench.config(f"nemesis-{seed}", world), []  # type: ignore[var-annotated]
    expected = undisturbed(world)
    with weather(random.Random(seed)) if weather else contextlib.nullcontext():
        torment(config, blows, bench, cluster, samples)
    history = bench.history(config)
    broken = [
        *checker.check(history, plan_of(config), EVERY),
        *checker.other_bits(final_hashes(bench.store(config)), expected),
        *checker.invalid(history, samples),
    ]
    what = f"seed {seed}, {world} ranks: " + ", ".join(f"{blow.name} at {blow.step}" for blow in blows)
    return what, broken, checker.recoveries(history)


def main() -> int:
    """Many seeds; 1 if any of them broke a promise."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--first", type=int, default=0)
    told = parser.parse_args()
    seconds: list[float] = []
    failed = False
    with tempfile.TemporaryDirectory(prefix="nemesis-", ignore_cleanup_errors=True) as name:
        folders = [Path(name, part) for part in ("faults", "runs", "digits")]
        for folder in folders:
            folder.mkdir()
        bench = Bench(folders[0], folders[1], write_digits(folders[2]))
        with fault_cluster(bench.faults) as cluster:
            undisturbed = Undisturbed(bench)
            for seed in range(told.first, told.first + told.seeds):
                what, broken, found = run(seed, bench, cluster, undisturbed)
                seconds += found
                failed = failed or bool(broken)
                print(f"{what}: {'; '.join(broken) or 'all promises kept'}; {max(found):.1f} s to recover", flush=True)
    print(f"{checker.percentile_95(seconds):.1f} s to recover at the 95th percentile of {len(seconds)} faults")
    return int(failed or bool(checker.slow(seconds)))


if __name__ == "__main__":
    sys.exit(main())
