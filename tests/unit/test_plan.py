from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raycnn.config import Config, load_config
from raycnn.data.plan import Plan, draws_per_epoch, plan_of
from raycnn.errors import DataError

PLANS = st.builds(
    Plan, num_rows=st.integers(1, 3000), global_batch=st.integers(1, 97), seed=st.integers(0, 2**62),
    neighbours=st.sampled_from([1, 1, 2, 7, 8]),
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(PLANS)
def test_every_epoch_holds_every_row_exactly_once(plan):
    rows, epochs = plan.share(0, steps=plan.steps(2))
    for epoch in (0, 1):
        assert sorted(rows[epochs == epoch]) == list(range(plan.num_rows))


@settings(max_examples=40, deadline=None)
@given(PLANS, st.integers(0, 500), st.sampled_from([1, 2, 3, 4, 8]))
def test_another_world_size_sees_the_same_rows_in_the_same_step(plan, step, world):
    plan = replace(plan, global_batch=plan.global_batch * world)
    shares = [plan.share(step, rank, world) for rank in range(world)]
    rows, epochs = plan.share(step)
    assert np.array_equal(np.concatenate([s[0] for s in shares]), rows)
    assert np.array_equal(np.concatenate([s[1] for s in shares]), epochs)


def test_a_range_of_steps_is_its_steps_one_after_the_other():
    plan = Plan(101, 12, 5)
    together, _ = plan.share(7, rank=1, world=3, steps=20)
    alone = np.concatenate([plan.share(step, rank=1, world=3)[0] for step in range(7, 27)])
    assert np.array_equal(together, alone)


def test_an_epoch_may_end_inside_a_batch():
    rows, epochs = Plan(10, 4, 0).share(2)
    assert list(epochs) == [0, 0, 1, 1]
    assert len(set(rows[:2])) == 2


@pytest.mark.parametrize(("epochs", "steps"), [(1, 25), (0.5, 13), (3, 75), (0.1 * 3, 8)])
def test_steps_complete_the_epochs(epochs, steps):
    assert Plan(100, 4, 0).steps(epochs) == steps


def test_seeds_and_epochs_give_unlike_orders():
    first, other = Plan(2000, 100, 1).share(0, steps=40)[0], Plan(2000, 100, 2).share(0, steps=20)[0]
    orders = [np.arange(2000), first[:2000], first[2000:], other]
    for i, a in enumerate(orders):
        for b in orders[:i]:
            assert abs(np.corrcoef(a, b)[0, 1]) < 0.1


def test_neighbours_stay_together_and_differ_from_epoch_to_epoch():
    lying = np.random.default_rng(0).permutation(100)
    plan = Plan(100, 16, 3, neighbours=8, lying=lying)
    rows, epochs = plan.share(0, steps=plan.steps(3))
    place = np.argsort(lying)
    beginnings = []
    for epoch in range(3):
        groups = place[rows[epochs == epoch]][:96].reshape(12, 8)
        assert (np.diff(groups) % 100 == 1).all()
        beginnings.append(groups[:, 0].tolist())
    assert len({begin % 8 for begins in beginnings for begin in begins}) > 1
    assert beginnings[0] != sorted(beginnings[0])


def test_groups_come_in_every_order_alike():
    # of 40 rows in groups of 4, the first of an epoch is each group equally often, wherever the groups begin
    rows, _ = Plan(40, 40, 11, neighbours=4).share(0, steps=4000)
    firsts = np.bincount(rows.reshape(-1, 40)[:, 0], minlength=40)
    assert firsts.sum() == 4000
    assert abs(firsts - 100).max() < 5 * np.sqrt(100)


def test_the_order_in_which_rows_lie_is_the_sources(tmp_path):
    table = pa.table({"key": ["b", "a", "a"], "offset": [0, 900, 100], "label": [0, 1, 2]})
    tree = {"run": {"name": "r", "storage": str(tmp_path)}, "data": {"source": "s", "neighbours": 2}}
    config = Config.model_validate(tree | {"model": {"name": "reference/lenet"}})
    assert plan_of(config, table).lying.tolist() == [2, 1, 0]


COUNTS = st.lists(st.integers(1, 300), min_size=1, max_size=12)


def resampled(counts, kind="balanced", batch=16, views=1):
    draws = draws_per_epoch(np.array(counts), kind)
    return Plan(sum(counts), batch, 7, views, tuple(zip(counts, draws.tolist(), strict=True)))


@settings(max_examples=60, deadline=None)
@given(COUNTS, st.sampled_from(["balanced", "sqrt", "none"]))
def test_each_class_has_its_draws_in_every_epoch_and_each_of_its_rows_its_turn(counts, kind):
    plan = resampled(counts, kind)
    rows, _ = plan.share(0, steps=plan.steps(3))
    classes = np.repeat(np.arange(len(counts)), counts)
    quotas = [draws for _, draws in plan.quotas]
    for epoch in range(3):
        found = rows[epoch * plan.num_rows : (epoch + 1) * plan.num_rows]
        assert list(np.bincount(classes[found], minlength=len(counts))) == quotas
    times = np.bincount(rows[: 3 * plan.num_rows], minlength=plan.num_rows)
    for number in range(len(counts)):
        assert np.ptp(times[classes == number]) <= 1


def test_draws_per_epoch():
    counts = np.array([900, 0, 90, 10])
    assert list(draws_per_epoch(counts, "none")) == [900, 0, 90, 10]
    assert list(draws_per_epoch(counts, "balanced")) == [334, 0, 333, 333]
    assert list(draws_per_epoch(counts, "sqrt")) == [703, 0, 223, 74]  # 30 : 9.49 : 3.16


@pytest.mark.parametrize("plan", [resampled([90, 9, 1], batch=20, views=n) for n in (1, 4)] + [Plan(100, 20, 7, 4)])
def test_no_view_of_a_row_comes_twice(plan):
    rows, views = plan.share(0, steps=plan.steps(5))
    assert len(set(zip(rows, views, strict=True))) == len(rows)
    for row in np.unique(rows):
        assert sorted(views[rows == row]) == list(range((rows == row).sum()))


@pytest.mark.parametrize("views", [1, 2, 4])
@pytest.mark.parametrize("world", [2, 4, 8])
def test_resampled_and_repeated_rows_are_the_same_on_any_number_of_ranks(world, views):
    plan = resampled([200, 30, 5], batch=16, views=views)
    for step in (0, 9, 200):
        whole = plan.share(step)
        parts = [plan.share(step, rank, world) for rank in range(world)]
        for number in (0, 1):
            assert np.array_equal(np.concatenate([part[number] for part in parts]), whole[number])


def test_repeated_views_stand_in_one_step_apart_from_each_other():
    plan = Plan(100, 12, 7, 3)
    rows, views = plan.share(3)
    assert list(rows[:4]) == list(rows[4:8]) == list(rows[8:])
    assert list(views) == [0] * 4 + [1] * 4 + [2] * 4
    assert list(rows[:4]) == list(Plan(100, 4, 7).share(3)[0])
    assert plan.steps(1) == 25
    assert plan.epochs(25) == 1


def test_neighbours_are_of_any_classes():
    """MixUp pairs them."""
    plan = resampled([500, 300, 40])
    rows, _ = plan.share(0, steps=plan.steps(4))
    classes = np.repeat(np.arange(3), [500, 300, 40])[rows[: len(rows) // 2 * 2]].reshape(-1, 2)
    pairs = np.histogram2d(*classes.T, bins=3)[0] / len(classes)
    assert np.abs(pairs - 1 / 9).max() < 0.02


def test_only_classes_can_be_resampled():
    config = load_config(
        {
            "run": {"name": "r", "storage": "/x"},
            "data": {"source": "/y", "resample": "sqrt"},
            "model": {"name": "reference/lenet"},
            "augment": {"views": 2},
        }
    )
    plan = plan_of(config, pa.table({"label": [0] * 9 + [2] * 4}))
    assert plan.quotas == ((9, 8), (4, 5))
    assert plan.views == 2
    with pytest.raises(DataError, match="one class each"):
        plan_of(config, pa.table({"label": [-1, -1]}))


def test_the_resampled_order_is_pinned():
    rows, views = resampled([7, 2, 1], batch=10).share(1)
    assert (list(rows), list(views)) == ([9, 6, 3, 8, 7, 9, 5, 8, 0, 9], [5, 1, 0, 2, 2, 3, 0, 1, 0, 4])


def test_the_order_is_pinned():
    """A changed order would break the resume of every run that is under way."""
    assert list(Plan(10, 10, 0).share(0)[0]) == [6, 2, 1, 4, 0, 9, 7, 5, 3, 8]
