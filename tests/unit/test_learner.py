import pytest
import torch

from raycnn.config import load_config
from raycnn.errors import CheckpointError, ConfigError
from raycnn.training.device import choose_precision, in_chunks
from raycnn.training.ranks import Ranks
from raycnn.training.setup import Body, facts_of

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def one_thread():
    """As training has it."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


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


def step(made, number):
    made.backward(*batch(made, number), global_count=6, step=number)
    made.step(0.05)
    made.average(number)


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
    "changes",
    [
        {},
        {"optim.name": "lamb", "optim.stage_decay": 0.5},
        {"train.micro_batch": 4, "model.batchnorm": "local", "train.ema": 0.9},
    ],
    ids=str,
)
def test_snapshot_and_restore_continue_bit_for_bit(changes):
    whole, parts = learner(**changes), learner(**changes)
    for seed in range(4):
        step(whole, seed)
    for seed in range(2):
        step(parts, seed)
    resumed = learner(**changes)
    resumed.restore(*parts.snapshot())
    for seed in range(2, 4):
        step(resumed, seed)
    assert not changed(weights(whole), weights(resumed))
    assert not changed(whole.snapshot()[0], resumed.snapshot()[0])


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


def test_passes_over_parts_of_the_batch_have_the_gradient_of_the_whole():
    whole, parts = learner(), learner(**{"train.micro_batch": 4})
    images, labels, valid = batch(whole, rows=10)
    valid[3] = False
    found = [each.backward(images, labels, valid, global_count=9, step=0) for each in (whole, parts)]
    assert [len(losses) for losses in found] == [1, 3]
    torch.testing.assert_close(found[0].sum(), found[1].sum())
    pairs = zip(whole.module.parameters(), parts.module.parameters(), strict=True)
    for one, other in pairs:
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-6)


def short_of_memory(made, rows):
    """As on a GPU that holds so many rows."""
    network = made.gradients.network

    def forward(inputs):
        outputs = network(inputs)
        if len(inputs) > rows:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return outputs

    made.gradients.network = forward


@pytest.mark.parametrize("batchnorm", ["frozen", "local"])
def test_memory_that_does_not_suffice_halves_the_passes(batchnorm, caplog):
    short, told = (learner(**{"train.micro_batch": m, "model.batchnorm": batchnorm}) for m in ("auto", 3))
    short_of_memory(short, 3)
    for number in range(2):
        step(short, number)
        step(told, number)
    assert short.micro_batch.rows == 3
    assert not changed(weights(short), weights(told))
    assert [record.getMessage() for record in caplog.records] == [
        "out of memory at step 0: 3 rows a pass from now on, in place of 6"
    ]


def test_not_even_one_row_fits():
    made = learner(**{"train.micro_batch": "auto"})
    short_of_memory(made, 0)
    with pytest.raises(ConfigError, match="out of memory at step 7 with one row a pass"):
        made.backward(*batch(made), global_count=6, step=7)


def test_the_mean_of_the_weights_is_evaluated_and_kept():
    made, plain = learner(**{"train.ema": 0.9}), learner()
    start = weights(made)
    expected = dict(start)
    images = batch(made)[0]
    for number, decay in enumerate([1 / 10, 2 / 11, 3 / 12, 4 / 13]):
        step(made, number)
        step(plain, number)
        expected = {name: decay * mean + (1 - decay) * weights(made)[name] for name, mean in expected.items()}
    assert not changed(weights(made), weights(plain))  # what trains does not notice
    kept, optimizer = made.snapshot()
    names = [name for name, tensor in kept.items() if tensor.is_floating_point()]
    for name in names:
        torch.testing.assert_close(kept[name], expected[name])
    assert changed(kept, weights(made)) >= set(made.stages.head.parameter_names)
    with made.evaluating() as network:
        found = network(images)
    reader = learner()
    reader.restore(kept, {})
    with reader.evaluating() as network:
        assert torch.equal(network(images), found)
    assert optimizer["raw"].keys() == kept.keys()


def test_the_mean_starts_from_the_loaded_weights():
    made, other = learner(**{"train.ema": 0.9}), learner()
    step(other, 0)
    made.restore(other.snapshot()[0], {})
    assert not changed(made.snapshot()[0], weights(other))


def test_a_state_without_the_weights_it_went_on_from_is_refused():
    made, other = learner(**{"train.ema": 0.9}), learner()
    with pytest.raises(CheckpointError, match="not the state of this optimizer: KeyError: 'raw'"):
        made.restore(*other.snapshot())


def test_penalties_are_terms_of_the_loss_on_what_trains_but_norms_and_biases():
    plain = learner(unfreeze=1)
    made = learner(unfreeze=1, **{"loss.l1": 0.01, "loss.l2": 0.02, "optim.clip_norm": 1e-9})
    for each in (plain, made):
        each.backward(*batch(each), global_count=6, step=0)
    own = {n: p for n, p in made.module.named_parameters() if p.grad is not None}
    weight = {name: p for name, p in own.items() if p.ndim > 1}
    assert 0 < len(weight) < len(own) < len(list(made.module.parameters()))
    value = sum(0.01 * p.abs().sum() + 0.02 * p.square().sum() for p in weight.values())
    assert made.penalty() == pytest.approx(float(value.detach()), rel=1e-5)
    expected = dict(zip(weight, torch.autograd.grad(value, list(weight.values())), strict=True))
    before = {name: p.grad.clone() for name, p in plain.module.named_parameters() if p.grad is not None}
    gradients = {name: p.grad for name, p in own.items()}
    norm = made.step(0.1)
    total = {name: before[name] + expected.get(name, 0) for name in before}
    assert norm == pytest.approx(float(torch.cat([each.flatten() for each in total.values()]).norm()), rel=1e-4)
    direction = torch.cat([gradients[name].flatten() for name in total])
    torch.testing.assert_close(direction / direction.norm(), torch.cat([t.flatten() for t in total.values()]) / norm)
