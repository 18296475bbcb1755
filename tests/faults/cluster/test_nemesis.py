"""Faults by chance; `python -m tests.faults.kit.nemesis --seeds 20` runs more of them."""

from __future__ import annotations

import pytest

from tests.faults.kit import nemesis
from tests.faults.kit.cluster import FaultCluster
from tests.faults.kit.jobs import Bench, Undisturbed
from tests.faults.kit.scenarios import Seen


def test_a_seed_always_means_the_same() -> None:
    assert all(nemesis.compose(seed) == nemesis.compose(seed) for seed in range(50))
    drawn = [nemesis.compose(seed) for seed in range(50)]
    assert {blow.name for _, blows in drawn for blow in blows} == {*nemesis.OF_A_RANK, *nemesis.OF_THE_JOB}
    assert all(0 <= blow.step <= nemesis.STEPS and blow.rank < world for world, blows in drawn for blow in blows)


@pytest.mark.slow
@pytest.mark.scenario("driver or head lost")
@pytest.mark.parametrize("seed", [0])
def test_nemesis(
    seed: int, cluster: FaultCluster, bench: Bench, undisturbed: Undisturbed, seen: Seen,
    recoveries: list[float],
) -> None:  # fmt: skip
    what, broken, seconds = nemesis.run(seed, bench, cluster, undisturbed)
    print(what)
    assert broken == [], what
    recoveries += seconds
    seen.what, seen.recovery_s = f"{what}: all promises kept", max(seconds, default=None)
