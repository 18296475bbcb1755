import numpy as np
import pytest

from raycnn.data.dataset import ScanOrder, TrainOrder, batches_per_block
from raycnn.data.plan import Plan
from raycnn.data.reader import PADDING


@pytest.mark.parametrize("steps_per_block", [1, 3, 7])
def test_train_blocks_are_the_plan_cut_in_steps(steps_per_block):
    plan = Plan(50, 8, 0)
    order = TrainOrder(plan, rank=1, world=2, start=4, stop=21, steps_per_block=steps_per_block)
    rows = np.concatenate([order.block(number)[0] for number in range(order.num_blocks)])
    assert np.array_equal(rows, plan.share(4, 1, 2, steps=17)[0])


@pytest.mark.parametrize("world", [1, 2, 3, 5])
@pytest.mark.parametrize("num_rows", [1, 8, 9, 100])
def test_a_scan_holds_every_row_once_in_the_same_chunks(num_rows, world):
    seen = {}
    for rank in range(world):
        order = ScanOrder(num_rows, chunk=8, chunks_per_block=2, rank=rank, world=world)
        for number in range(order.num_blocks):
            for chunk in order.block(number)[0].reshape(-1, 8):
                seen[int(chunk[0]) // 8] = chunk
    whole = np.concatenate([seen[number] for number in sorted(seen)])
    assert list(whole[whole != PADDING]) == list(range(num_rows))
    assert len(whole) % 8 == 0


def test_blocks_hold_about_256_images_unless_told():
    assert batches_per_block(16) == 16
    assert batches_per_block(1000) == 1
    assert batches_per_block(16, 3) == 3
