"""The model behind docs/scaling.md."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest

from tests.bench.growth.assumed import Cluster, Costs, Design, Load
from tests.bench.growth.simulate import Point, simulate

COSTS = Costs(
    image_cpu_s=2e-3, image_bytes=80e3, view_bytes=150e3, image_requests=1, task_s=5e-3, raylet_s=1e-3, gcs_s=1e-4,
    block_s=1e-3, turn_s=1e-3, watch_s=1e-5, split_s=4e-3, rank_s=4e-3, controller_s=1e-3,
)  # fmt: skip
AMPLE = Cluster(requests_s=1e6)
DESIGNS: tuple[Design, ...] = ("ordered", "per rank")
designs = pytest.mark.parametrize("design", DESIGNS)


def at(design: Design, gpus: int = 8, gpu_rate: float = 1000, cluster: Cluster = AMPLE, **changes: float) -> Point:
    costs = {name: value for name, value in changes.items() if name in Costs.__annotations__}
    load = {name: value for name, value in changes.items() if name not in costs}
    small = {"rounds": 60, "ahead": 12} | load
    return simulate(replace(COSTS, **costs), cluster, Load(gpus, gpu_rate, **small), design)  # type: ignore[arg-type]


@designs
def test_where_nothing_is_scarce_all_gpus_are_busy(design: Design) -> None:
    point = at(design)
    assert point.images_s == pytest.approx(8000, rel=1e-3)
    assert point.limit == "GPUs"
    assert point.requests_s == pytest.approx(8000, rel=1e-3)
    assert point.fetched_s == pytest.approx(8000 * 80e3, rel=1e-3)
    assert point.blocks_s == pytest.approx(8000 / 256, rel=1e-3)


@designs
@pytest.mark.parametrize("cluster", [AMPLE, Cluster(), replace(AMPLE, node_cpus=12)])
def test_images_in_are_images_out(design: Design, cluster: Cluster) -> None:
    point = at(design, gpus=6, gpu_rate=3000, cluster=cluster)
    assert point.images_in == point.images_out == 6 * 60 * 256


@designs
def test_more_gpus_never_give_fewer_images_while_one_loop_suffices(design: Design) -> None:
    rates = [at(design, gpus=gpus, gpu_rate=500).images_s for gpus in (1, 2, 4, 8, 16, 32)]
    assert rates == sorted(rates)


@designs
@pytest.mark.parametrize("name", ["node_cpus", "requests_s", "node_bytes_s"])
def test_more_of_a_resource_never_gives_fewer_images(design: Design, name: str) -> None:
    scarce = {"node_cpus": 2.0, "requests_s": 2000.0, "node_bytes_s": 5e7}[name]
    clusters = [replace(AMPLE, node_gpus=1, **{name: type(getattr(AMPLE, name))(scarce * n)}) for n in (1, 2, 4, 8, 64)]
    rates = [at(design, gpu_rate=2000, cluster=cluster).images_s for cluster in clusters]
    assert all(more >= 0.999 * less for less, more in pairwise(rates)), rates
    assert rates[-1] > 1.5 * rates[0]


@designs
@pytest.mark.parametrize(
    ("limit", "cluster", "costs"),
    [
        ("decoding CPUs", replace(AMPLE, node_cpus=2, node_gpus=1), {}),
        ("object store requests", replace(AMPLE, requests_s=1000), {}),
        ("network", replace(AMPLE, node_bytes_s=1e8), {}),
        ("scheduling loop", AMPLE, {"block_s": 1.0}),
        ("Ray's head", AMPLE, {"gcs_s": 0.1}),
        ("Train's controller", AMPLE, {"controller_s": 0.2}),
        ("object store memory", replace(AMPLE, node_store_bytes=4e7), {}),
    ],
)
def test_what_is_made_scarce_is_what_limits(
    design: Design, limit: str, cluster: Cluster, costs: dict[str, float]
) -> None:
    point = at(design, cluster=cluster, **costs)
    assert point.limit == limit, point.shares
    if limit != "Train's controller":  # which holds up no image
        assert point.images_s < 7900


@designs
def test_requests_that_are_scarce_are_all_used(design: Design) -> None:
    assert at(design, cluster=replace(AMPLE, requests_s=1000)).images_s == pytest.approx(1000, rel=0.01)


def test_cpus_that_are_scarce_rest_only_until_one_loop_sees_that_they_are_free() -> None:
    one, each = (at(design, cluster=replace(AMPLE, node_cpus=2, node_gpus=1)) for design in DESIGNS)
    most = 8 / (COSTS.image_cpu_s + (COSTS.task_s + COSTS.raylet_s) / 256)
    assert 0.75 * most < one.images_s < 0.95 * most
    assert each.images_s == pytest.approx(most, rel=0.05)


def test_the_designs_are_one_for_one_rank() -> None:
    for cluster in (AMPLE, Cluster(), replace(AMPLE, node_cpus=2)):
        one, each = (at(design, gpus=1, gpu_rate=3000, cluster=cluster) for design in DESIGNS)
        assert replace(one, design="per rank") == each


def test_a_loop_for_all_ranks_is_used_up_where_a_loop_for_each_is_not() -> None:
    one, each = (at(design, gpus=64, gpu_rate=3000) for design in DESIGNS)
    assert one.limit == "scheduling loop"
    assert each.limit != "scheduling loop"
    assert each.images_s > 3 * one.images_s


@designs
def test_nothing_is_busy_for_more_than_all_of_the_time_or_less_than_none(design: Design) -> None:
    for gpus, cluster in ((1, AMPLE), (16, AMPLE), (64, AMPLE), (16, Cluster())):
        shares = at(design, gpus=gpus, gpu_rate=3000, cluster=cluster).shares
        assert all(0 <= share <= 1.001 for share in shares.values()), shares


def test_the_same_numbers_in_give_the_same_numbers_out() -> None:
    assert at("per rank") == at("per rank")
