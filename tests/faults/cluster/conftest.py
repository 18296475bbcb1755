"""What all tests on a cluster share: the images, the undisturbed runs, and how long recoveries took."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from raycnn.config import Config
from tests.faults.kit import checker
from tests.faults.kit.cluster import FaultCluster, fault_cluster
from tests.faults.kit.history import History
from tests.faults.kit.jobs import EVERY, Bench, Undisturbed, plan_of
from tests.faults.kit.scenarios import Seen
from tests.support.digits import write_digits


@pytest.fixture(scope="session")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    source = write_digits(tmp_path_factory.mktemp("digits"))
    return Bench(tmp_path_factory.mktemp("faults"), tmp_path_factory.mktemp("runs"), source)


@pytest.fixture(scope="module")
def cluster(bench: Bench) -> Iterator[FaultCluster]:
    """A head of four logical CPUs."""
    with fault_cluster(bench.faults, head_cpus=4) as running:
        yield running


@pytest.fixture(scope="session")
def undisturbed(bench: Bench) -> Undisturbed:
    return Undisturbed(bench)


@pytest.fixture(scope="session")
def recoveries() -> list[float]:
    """Seconds from a fault to the next new step, of all unannounced faults of the session."""
    return []


@pytest.fixture
def promises(bench: Bench, recoveries: list[float], seen: Seen) -> Callable[[Config], History]:
    """Checks a run's history and tells the table; gives the history back."""

    def kept(config: Config) -> History:
        history = bench.history(config)
        assert checker.check(history, plan_of(config), EVERY) == []
        found = checker.recoveries(history)
        lost = [checker.steps_lost(history, start) for start in history.starts]
        seen.steps_lost, seen.recovery_s = max(lost), max(found, default=None)
        recoveries.extend(found)
        return history

    return kept
