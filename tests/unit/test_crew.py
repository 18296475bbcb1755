"""How many packs and trials at once a cluster carries."""

from __future__ import annotations

import json
from typing import Any

import pytest

from raycnn.cluster import CpuDivision
from raycnn.config import Config, load_config
from raycnn.errors import ConfigError
from raycnn.searching.costs import Costs, CutCost
from raycnn.searching.crew import CALLS_AT_ONCE, Crew, fit_memory, size_crew, take_turns


def config(**changes: Any) -> Config:
    base = {
        "run": {"name": "r", "storage": "/x"},
        "data": {"source": "/y"},
        "model": {"name": "reference/lenet"},
        "train": {"global_batch": 48},
    }
    return load_config(base, {path.replace("__", "."): value for path, value in changes.items()})


@pytest.mark.parametrize(
    ("changes", "num_trials", "resources", "expected"),
    [
        ({}, 100, {"CPU": 2.0}, Crew(2, 1, 16, CpuDivision(2.0, 0.5, 0.4, False))),
        ({}, 3, {"CPU": 2.0}, Crew(2, 1, 3, CpuDivision(2.0, 0.5, 0.4, False))),
        ({}, 1, {"CPU": 2.0}, Crew(1, 1, 1, CpuDivision(2.0, 1.0, 0.8, False))),
        ({}, 100, {"CPU": 0.5}, Crew(1, 1, 8, CpuDivision(0.5, 0.25, 0.2, False))),
        ({"train__threads": 3}, 100, {"CPU": 8.0}, Crew(2, 1, 16, CpuDivision(8.0, 1.0, 0.8, False))),
        ({"train__workers": 2}, 100, {"CPU": 5.0}, Crew(2, 2, 16, CpuDivision(5.0, 0.625, 0.5, False))),
        ({}, 100, {"CPU": 32.0, "GPU": 4.0}, Crew(4, 1, 32, CpuDivision(32.0, 1.0, 0.4, True))),
        ({"train__workers": 2}, 100, {"CPU": 32.0, "GPU": 5.0}, Crew(2, 2, 16, CpuDivision(32.0, 1.0, 0.4, True))),
        ({"search__packs": 1}, 100, {"CPU": 4.0}, Crew(1, 1, 8, CpuDivision(4.0, 1.0, 0.8, False))),
        ({"search__packs": 3}, 2, {"CPU": 4.0}, Crew(3, 1, 2, CpuDivision(4.0, 0.667, 0.534, False))),
        ({"search__concurrent": 5}, 100, {"CPU": 2.0}, Crew(2, 1, 5, CpuDivision(2.0, 0.5, 0.4, False))),
        ({"search__concurrent": 500}, 400, {"CPU": 1.0}, Crew(1, 1, CALLS_AT_ONCE, CpuDivision(1.0, 0.5, 0.4, False))),
    ],
    ids=lambda value: json.dumps(value) if isinstance(value, dict) else "",
)
def test_a_pack_for_every_place(changes: Any, num_trials: int, resources: Any, expected: Crew) -> None:
    assert size_crew(config(**changes), num_trials, resources) == expected


@pytest.mark.parametrize(
    ("changes", "resources", "what", "where", "fix"),
    [
        ({"search__packs": 3}, {"CPU": 2.0}, "3 packs of 1 workers need 3 CPUs, the cluster has 2", "search.packs", 2),
        (
            {"train__workers": 4}, {"CPU": 3.0},
            "1 packs of 4 workers need 4 CPUs, the cluster has 3", "train.workers", 3,
        ),
        (
            {"search__packs": 2, "train__workers": 3}, {"CPU": 64.0, "GPU": 5.0},
            "2 packs of 3 workers need 6 GPUs, the cluster has 5", "search.packs", 5,
        ),
        (
            {"train__workers": 2, "train__threads": 4}, {"CPU": 7.0},
            "1 packs of 2 workers need 2 CPUs, the cluster has 1", "train.workers", 1,
        ),
    ],
)  # fmt: skip
def test_packs_that_do_not_fit_are_refused_with_the_numbers(
    changes: Any, resources: dict[str, float], what: str, where: str, fix: int
) -> None:
    with pytest.raises(ConfigError) as caught:
        size_crew(config(**changes), 16, resources)
    assert (caught.value.what, caught.value.where) == (what, where)
    assert f"at most {fix} workers" in caught.value.fix


CREW = Crew(packs=2, ranks=1, concurrent=16, cpus=CpuDivision(2.0, 0.5, 0.5, False))
SMALL, LARGE = (CutCost(1.0, 1.0, 1, 1.0, 1.0, trial_bytes) for trial_bytes in (10**8, 3 * 10**8))
COSTS = Costs(1.0, 1, {0: SMALL, 2: LARGE}, {"0": 0, "2": 2}, rss_bytes=10**9)


@pytest.mark.parametrize(("changes", "concurrent"), [({}, 2), ({"search__concurrent": 16}, 16)])
def test_trials_that_share_nothing_more_take_turns_in_each_pack(changes: dict[str, Any], concurrent: int) -> None:
    assert take_turns(CREW, config(**changes)) == Crew(2, 1, concurrent, CREW.cpus)


# a pack has half of the memory, 1 GB of it is taken, and the largest trial needs 0.3 GB
@pytest.mark.parametrize(
    ("memory", "concurrent"), [(2.6e9, 2), (3.19e9, 2), (3.2e9, 4), (6.7e9, 14), (6.8e9, 16), (1e12, 16)]
)
def test_as_many_trials_at_once_as_memory_holds(memory: float, concurrent: int) -> None:
    fitted = fit_memory(CREW, COSTS, memory)
    assert fitted == Crew(2, 1, concurrent, CREW.cpus)


def test_every_rank_of_a_pack_needs_its_own_memory() -> None:
    crew = Crew(packs=2, ranks=2, concurrent=16, cpus=CREW.cpus)
    assert fit_memory(crew, COSTS, 6.4e9).concurrent == 4


def test_memory_for_no_trial_is_refused_with_the_numbers() -> None:
    with pytest.raises(ConfigError) as caught:
        fit_memory(CREW, COSTS, 2.5e9)
    assert caught.value.what == "a pack has 1.2 GB, needs 1.0 and 0.30 for each trial"
    assert caught.value.where == "search.packs"
    assert "less depth" in caught.value.fix
