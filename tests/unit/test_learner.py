import pytest
import torch

from raycnn.config import load_config
from raycnn.errors import ConfigError
from raycnn.training.device import choose_precision, in_chunks
from raycnn.training.ranks import Ranks
from raycnn.training.setup import Body, facts_of

CPU = torch.device("cpu")


def learner(unfreeze="all", **changes):
    config = load_config(
        {
            "run": {"name": "r", "storage": "/x"},
            "data": {"source": "/y", "image_size": 64},
            "model": {"name": "timm/test_efficientnet", "unfreeze": unfreeze},
            "train": {"chunk": 4},
        },
        changes,
    )
    body = Body(config, facts_of(config, ("a", "b", "c")), CPU)
    made = body.learner(config, Ranks(), None)
    made.enter(unfreeze)
    made.prefix = body.prefix
    return made


def batch(made, seed=0, rows=6):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (rows, 64, 64, 3), generator=generator, dtype=torch.uint8)
    inputs = made.prefix.taps(images, [made.base])[made.base]
    return inputs, torch.arange(rows) % 3, torch.ones(rows, dtype=torch.bool)


def weights(made):
    return {name: tensor.clone() for name, tensor in made.module.state_dict().items()}


def changed(before, after):
    return {name for name in before if not before[name].equal(after[name])}


def test_a_step_moves_the_suffix_alone_and_no_statistics():
    made = learner(unfreeze=1)
    before = weights(made)
    made.backward(*batch(made), global_count=6, step=0)
    assert made.step(0.1) > 0
    expected = {n for s in (*made.stages.stages[-1:], made.stages.head) for n in s.parameter_names}
    assert changed(before, weights(made)) <= expected
    assert set(made.stages.head.parameter_names) <= changed(before, weights(made))


def test_masked_rows_change_nothing():
    made = [learner(), learner()]
    images, labels, valid = batch(made[0])
    valid[4:] = False
    made[0].backward(images, labels, valid, global_count=4, step=0)
    images = torch.cat([images[:4], torch.zeros_like(images[4:])])
    labels[4:] = 0
    made[1].backward(images, labels, valid, global_count=4, step=0)
    for each in made:
        each.step(0.1)
    assert not changed(weights(made[0]), weights(made[1]))


def test_a_gradient_that_is_not_finite_leaves_the_weights_alone():
    made = learner()
    before = weights(made)
    made.backward(*batch(made), global_count=6, step=0)
    next(p for group in made.optimizer.param_groups for p in group["params"]).grad[0] = float("nan")
    norm = made.step(0.1)
    assert norm != norm
    assert not changed(before, weights(made))


@pytest.mark.parametrize(
    "changes", [{}, {"optim.stage_decay": 0.5}, {"optim.name": "lamb"}, {"optim.name": "rmsprop"}], ids=str
)
def test_snapshot_and_restore_continue_bit_for_bit(changes):
    whole, parts = learner(**changes), learner(**changes)
    for seed in range(4):
        whole.backward(*batch(whole, seed), global_count=6, step=0)
        whole.step(0.05)
    for seed in range(2):
        parts.backward(*batch(parts, seed), global_count=6, step=0)
        parts.step(0.05)
    resumed = learner(**changes)
    resumed.restore(*parts.snapshot())
    for seed in range(2, 4):
        resumed.backward(*batch(resumed, seed), global_count=6, step=0)
        resumed.step(0.05)
    assert not changed(weights(whole), weights(resumed))


def test_a_stage_moves_by_its_own_rate():
    settings = {"optim.name": "sgd", "optim.momentum": 0, "optim.weight_decay": 0}
    plain, staged = learner(**settings), learner(**settings, **{"optim.stage_decay": 0.5})
    start = weights(plain)
    for each in (plain, staged):
        each.backward(*batch(each), global_count=6, step=0)
        each.step(0.1)
    order = [plain.stages.head, *reversed(plain.stages.stages)]
    for number, stage in enumerate(order):
        for name in stage.parameter_names:
            moved, halved = (weights(each)[name] - start[name] for each in (plain, staged))
            torch.testing.assert_close(halved, moved * 0.5**number, rtol=1e-2, atol=1e-6)


def test_clipping_bounds_the_step():
    made = learner(**{"optim.name": "sgd", "optim.momentum": 0, "optim.weight_decay": 0, "optim.clip_norm": 1e-3})
    before = weights(made)
    made.backward(*batch(made), global_count=6, step=0)
    assert made.step(1.0) > 1e-3
    moved = torch.cat([(before[n] - t).flatten() for n, t in weights(made).items() if t.is_floating_point()])
    assert float(moved.norm()) == pytest.approx(1e-3, rel=1e-3)


def test_evaluation_restores_the_train_mode_and_has_fixed_chunks():
    made = learner()
    images = batch(made, rows=10)[0]
    with made.evaluating() as network:
        whole = network(images)
        assert torch.equal(network(images[4:8]), whole[4:8])
    assert made._split.suffix.training


def test_chunks_are_padded_to_one_shape_and_trimmed():
    shapes = []

    def double(x):
        shapes.append(tuple(x.shape))
        return 2 * x

    x = torch.arange(10.0).reshape(10, 1, 1, 1)
    assert torch.equal(in_chunks(double, x, 4), 2 * x)
    assert shapes == [(4, 1, 1, 1)] * 3


def test_precision():
    assert choose_precision("auto", CPU) is torch.float32
    assert choose_precision("bf16", CPU) is torch.bfloat16
    with pytest.raises(ConfigError, match="fp16 needs a GPU"):
        choose_precision("fp16", CPU)
