import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raycnn.data.plan import Plan

PLANS = st.builds(Plan, num_rows=st.integers(1, 3000), global_batch=st.integers(1, 97), seed=st.integers(0, 2**62))


@settings(max_examples=60, deadline=None)
@given(PLANS)
def test_every_epoch_holds_every_row_exactly_once(plan):
    rows, epochs = plan.share(0, steps=plan.steps(2))
    for epoch in (0, 1):
        assert sorted(rows[epochs == epoch]) == list(range(plan.num_rows))


@settings(max_examples=40, deadline=None)
@given(PLANS, st.integers(0, 500), st.sampled_from([1, 2, 3, 4, 8]))
def test_another_world_size_sees_the_same_rows_in_the_same_step(plan, step, world):
    plan = Plan(plan.num_rows, plan.global_batch * world, plan.seed)
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


def test_the_order_is_pinned():
    """A changed order would break the resume of every run that is under way."""
    assert list(Plan(10, 10, 0).share(0)[0]) == [6, 2, 1, 4, 0, 9, 7, 5, 3, 8]
