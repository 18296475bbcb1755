"""What to keep of an image, from costs that can be worked out by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raycnn.searching.costs import Costs, CutCost, Uses, choose, describe, kept_bytes, merged

CUT = CutCost(prefix_s=2.0, suffix_s=1.0, bytes=4, keep_s=0.4, take_s=0.2, trial_bytes=100)
COSTS = Costs(read_s=1.0, pixel_bytes=10, cuts={0: CUT}, depths={"0": 0}, rss_bytes=1000)
PLENTY = 10**9


def chosen(costs: Costs = COSTS, per_view: float = 3.0, views: int = 5, limit: int = PLENTY, wanted: str = "auto"):
    return choose(costs, Uses(per_view, views), limit, wanted)


def with_cut(**changes: float) -> Costs:
    return replace(COSTS, cuts={0: replace(CUT, **changes)})


# three uses: share 3 (1 + 2) = 9; activations 1 + 2 + 0.4 + 3 * 0.2 = 4; pixels 1 + 1 + 3 (0.5 + 2) = 9.5,
# since a byte costs 0.1 s to keep and 0.05 s to take
def test_an_expensive_prefix_used_often_is_computed_once() -> None:
    assert chosen() == {0: "activations"}


def test_what_is_used_once_is_not_kept() -> None:
    assert chosen(per_view=1.0) == {0: "share"}


def test_a_slow_read_before_a_cheap_prefix_keeps_pixels() -> None:
    # 1000 bytes at the same price a byte: activations 1.01 + 100 + 3 * 50; pixels 1 + 1 + 3 (0.5 + 0.01) = 3.53
    costs = replace(COSTS, read_s=5.0, cuts={0: replace(CUT, prefix_s=0.01, bytes=1000, keep_s=100.0, take_s=50.0)})
    assert chosen(costs) == {0: "pixels"}


# share 3n, activations 3.4 + 0.2 n: equal at n = 3.4 / 2.8
@pytest.mark.parametrize(("per_view", "expected"), [(1.21, "share"), (1.22, "activations")])
def test_the_border_lies_where_the_costs_are_equal(per_view: float, expected: str) -> None:
    assert chosen(per_view=per_view) == {0: expected}


# share 3 n, pixels 2 + 2.5 n: equal at n = 4; ten times the bytes at the same price make activations 7 + 2 n
@pytest.mark.parametrize(("per_view", "expected"), [(3.9, "share"), (4.1, "pixels")])
def test_the_border_of_pixels(per_view: float, expected: str) -> None:
    assert chosen(with_cut(bytes=40, keep_s=4.0, take_s=2.0), per_view=per_view) == {0: expected}


def test_a_cache_that_cannot_be_used_is_not_chosen() -> None:
    assert chosen(with_cut(keep_s=math.inf, take_s=math.inf)) == {0: "share"}


@pytest.mark.parametrize("wanted", ["share", "activations", "pixels"])
def test_what_is_wanted_is_taken_where_it_fits(wanted: str) -> None:
    assert chosen(per_view=1.0, wanted=wanted) == {0: wanted}
    assert chosen(per_view=1.0, wanted=wanted, limit=0) == {0: "share"}


TWO = replace(COSTS, cuts={0: CUT, 2: replace(CUT, prefix_s=1.0, bytes=8, keep_s=0.8, take_s=0.4)})


# five views of 4 and of 40 bytes, each with 64 beside it; 10 bytes of pixels serve both depths
@pytest.mark.parametrize(
    ("limit", "read_s", "expected"),
    [(860, 1.0, "activations"), (859, 1.0, "pixels"), (370, 9.0, "pixels"), (369, 9.0, "share")],
)
def test_what_does_not_fit_gives_way_to_the_next_best(limit: int, read_s: float, expected: str) -> None:
    costs = replace(COSTS, read_s=read_s, cuts={0: CUT, 2: replace(CUT, prefix_s=2.4, bytes=40)})
    assert chosen(costs, limit=limit) == {0: expected, 2: expected}


def test_pixels_are_kept_once_for_all_depths() -> None:
    assert kept_bytes(TWO, {0: "pixels", 2: "pixels"}, views=5) == 50 + 5 * 64
    assert kept_bytes(TWO, {0: "activations", 2: "pixels"}, views=5) == 70 + 10 * 64
    assert kept_bytes(TWO, {0: "activations", 2: "activations"}, views=5) == 60 + 10 * 64
    assert kept_bytes(TWO, {0: "share", 2: "share"}, views=5) == 0
    assert chosen(TWO, limit=370, wanted="pixels") == {0: "pixels", 2: "pixels"}
    assert chosen(TWO, limit=369, wanted="pixels") == {0: "share", 2: "share"}


def test_description_by_depth() -> None:
    assert describe(TWO, {0: "activations", 2: "pixels"}) == [
        {"depth": 0, "choice": "activations", "bytes_per_image": 4, "seconds_per_image": 3.0},
        {"depth": 2, "choice": "pixels", "bytes_per_image": 10, "seconds_per_image": 2.0},
    ]


SECONDS = st.floats(1e-6, 10.0)
CUTS = st.builds(CutCost, SECONDS, SECONDS, st.integers(1, 10**6), SECONDS, SECONDS, st.integers(1, 10**9))
COSTS_OF_ANY = st.builds(
    Costs, SECONDS, st.integers(1, 10**6), st.dictionaries(st.integers(0, 5), CUTS, min_size=1), st.just(0)
)


def seconds(costs: Costs, depth: int, choice: str, uses: float) -> float:
    cut = costs.cuts[depth]
    keep, take = (each * costs.pixel_bytes / cut.bytes for each in (cut.keep_s, cut.take_s))
    return {
        "share": uses * (costs.read_s + cut.prefix_s),
        "activations": costs.read_s + cut.prefix_s + cut.keep_s + uses * cut.take_s,
        "pixels": costs.read_s + keep + uses * (take + cut.prefix_s),
    }[choice]


@given(COSTS_OF_ANY, st.floats(1.0, 50.0), st.integers(1, 1000), st.integers(0, 10**8))
def test_it_always_fits_and_never_costs_more_than_sharing(
    costs: Costs, per_view: float, views: int, limit: int
) -> None:
    found = chosen(costs, per_view, views, limit)
    assert found.keys() == costs.cuts.keys()
    assert kept_bytes(costs, found, views) <= limit
    assert len({choice == "share" for choice in found.values()}) == 1
    roomy = chosen(costs, per_view, views, 10**12)

    def total(plan: dict[int, str]) -> float:
        return sum(seconds(costs, depth, choice, per_view) for depth, choice in plan.items())

    kept = sum(min(seconds(costs, d, c, per_view) for c in ("activations", "pixels")) for d in found)
    shared = total(dict.fromkeys(found, "share"))
    assert total(roomy) == pytest.approx(min(kept, shared))
    assert total(roomy) <= total(found) * (1 + 1e-9) <= shared * (1 + 1e-9) ** 2


def test_what_several_packs_measured_is_one_account() -> None:
    small, middle, large = (CutCost(1, 2, 3, 4, 5, trial_bytes) for trial_bytes in (6, 7, 8))
    first = Costs(0.5, 7, {2: large, 0: small}, {"2": 2, "0": 0}, 100)
    second = Costs(0.6, 7, {"blocks.6": middle}, {"blocks.6.conv": "blocks.6"}, 200)
    found = merged([first, second])
    assert list(found.cuts.items()) == [(0, small), ("blocks.6", middle), (2, large)]
    assert found.depths == {"0": 0, "2": 2, "blocks.6.conv": "blocks.6"}
    assert (found.read_s, found.pixel_bytes, found.rss_bytes) == (0.5, 7, 200)
