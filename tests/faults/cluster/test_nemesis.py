"""What the nemesis composes; `make nemesis` lets it act."""

from __future__ import annotations

from tests.faults.kit import nemesis


def test_a_seed_always_means_the_same() -> None:
    assert all(nemesis.compose(seed) == nemesis.compose(seed) for seed in range(50))
    drawn = [nemesis.compose(seed) for seed in range(50)]
    assert {blow.name for _, blows in drawn for blow in blows} == {*nemesis.OF_A_RANK, *nemesis.OF_THE_JOB}
    assert all(0 <= blow.step <= nemesis.STEPS and blow.rank < world for world, blows in drawn for blow in blows)
