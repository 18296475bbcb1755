"""Distillation: the loss is the formula, and the teacher answers for the very views that the student sees."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Bernoulli, Categorical, kl_divergence

from raycnn.config import AugmentConfig, Config, load_config
from raycnn.errors import CheckpointError
from raycnn.searching.shared import share_key
from raycnn.storage import open_store
from raycnn.storage.cache import Cache
from raycnn.training.clock import Clock
from raycnn.training.device import Normalize
from raycnn.training.distill import distilled
from raycnn.training.feed import Feed
from raycnn.training.filling import FillingFeed, feed_of
from raycnn.training.losses import Mixed, Taught, cross_entropy_sum, of_mixed, one_label_loss
from raycnn.training.losses_of_outputs import number_loss, sigmoid_loss
from raycnn.training.problems import Binary, Regression
from raycnn.training.ranks import Ranks
from raycnn.training.run import create_run, from_elsewhere, place_of, read_run
from raycnn.training.setup import Body, facts_of, loss_of, network_of
from raycnn.training.state import NetworkFacts
from raycnn.training.teacher import Teacher
from raycnn.training.teaching import check_teacher, load_teacher
from tests.support.feeds import CPU, World
from tests.unit.test_lineage import CLASSES, config, store_of, trained, tree

T = 3.0


def settings(**changes: Any) -> Any:
    distill = {"loss.distill.teacher": "run:t", "loss.distill.weight": 0.25, "loss.distill.temperature": T}
    base = {"run": {"name": "r", "storage": "/x"}, "data": {"source": "/y"}, "model": {"name": "reference/lenet"}}
    return load_config(base, distill | changes)


def batch(classes: int = 5) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(logits, the teacher's, labels, valid)"""
    generator = torch.Generator().manual_seed(0)
    logits, teacher = torch.randn(2, 12, classes, generator=generator) * 3
    labels = torch.randint(classes, (12,), generator=generator)
    return logits.requires_grad_(), teacher, labels, torch.arange(12) % 3 != 1


def test_of_classes_it_is_the_divergence_of_softened_distributions_times_t_squared() -> None:
    logits, teacher, labels, valid = batch()
    config = settings().loss
    loss = distilled(one_label_loss(config, None, CPU), config.distill, "single-label")
    soft = kl_divergence(Categorical(logits=teacher / T), Categorical(logits=logits / T))[valid].sum()
    expected = 0.75 * F.cross_entropy(logits[valid], labels[valid], reduction="sum") + 0.25 * T**2 * soft
    torch.testing.assert_close(loss(logits, Taught(labels, teacher), valid), expected)


@pytest.mark.parametrize("task", ["binary", "multi-label"])
def test_of_yes_and_no_it_is_that_of_each_output_by_itself(task: str) -> None:
    logits, teacher, _, valid = batch()
    targets, config = (logits.detach().flip(0) > 0).float(), settings().loss
    own = sigmoid_loss(config, None, CPU)
    soft = kl_divergence(Bernoulli(logits=teacher / T), Bernoulli(logits=logits / T)).mean(1)[valid].sum()
    found = distilled(own, config.distill, task)(logits, Taught(targets, teacher), valid)
    torch.testing.assert_close(found, 0.75 * own(logits, targets, valid) + 0.25 * T**2 * soft)


def test_of_numbers_it_is_the_squared_difference() -> None:
    logits, teacher, _, valid = batch(1)
    targets, config = torch.linspace(-1, 1, 12), settings().loss
    own = number_loss(config, None, CPU)
    soft = (logits - teacher)[valid].square().sum()
    found = distilled(own, config.distill, "regression")(logits, Taught(targets, teacher), valid)
    torch.testing.assert_close(found, 0.75 * own(logits, targets, valid) + 0.25 * soft)


@pytest.mark.parametrize("task", ["single-label", "binary", "regression"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_masked_rows_give_exactly_no_gradient(task: str, bad: float) -> None:
    logits, teacher, labels, valid = batch()
    with torch.no_grad():
        logits[~valid] = bad
        teacher[~valid] = bad
    loss = distilled(cross_entropy_sum, settings().loss.distill, task)
    total = loss(logits, Taught(labels, teacher), valid)
    (gradient,) = torch.autograd.grad(total, logits)
    assert torch.isfinite(total)
    assert torch.equal(gradient[~valid], torch.zeros_like(gradient[~valid]))
    assert torch.isfinite(gradient).all()


def test_mixed_images_have_both_labels_and_one_answer() -> None:
    logits, teacher, labels, valid = batch()
    own = one_label_loss(settings().loss, None, CPU)
    mixed = Mixed(labels, labels.flip(0), torch.linspace(0, 1, 12))
    loss = distilled(own, settings().loss.distill, "single-label")
    soft = loss(logits, Taught(labels, teacher), valid) - 0.75 * own(logits, labels, valid)
    found = of_mixed(loss, logits, Taught(mixed, teacher), valid)
    torch.testing.assert_close(found, 0.75 * of_mixed(own, logits, mixed, valid) + soft)
    half = Taught(mixed, teacher)[slice(3, 7)]
    assert torch.equal(half.teacher_NK, teacher[3:7])
    assert torch.equal(half.own[:].second_N, mixed.second_N[3:7])  # type: ignore[union-attr]


def facts(name: str = "reference/lenet", **changes: Any) -> NetworkFacts:
    return facts_of(settings(**{"model.name": name, "train.chunk": 4, **changes}), CLASSES)


def test_the_teacher_sees_the_student_s_images_in_its_own_colours() -> None:
    student, mine = facts(), facts(**{"data.mean": [0.4, 0.5, 0.6], "data.std": [0.2, 0.25, 0.3]})
    network = network_of(mine, settings().given, seed=1).module
    images = torch.randint(0, 256, (6, 32, 32, 3), dtype=torch.uint8)
    found = Teacher(network, mine, student, "w", CPU)(Normalize(student.preprocessing)(images))
    with torch.no_grad():
        expected = network.eval()(Normalize(mine.preprocessing)(images))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert not any(parameter.requires_grad for parameter in network.parameters())


def test_the_teacher_sees_them_at_its_own_size() -> None:
    student, mine = facts(), facts("torchvision/resnet18", **{"data.image_size": 64})
    network = network_of(mine, settings().given, seed=1).module
    flat = torch.full((2, 32, 32, 3), 100, dtype=torch.uint8)
    found = Teacher(network, mine, student, "w", CPU)(Normalize(student.preprocessing)(flat))
    large = torch.full((2, 64, 64, 3), 100, dtype=torch.uint8)
    with torch.no_grad():
        expected = network.eval()(Normalize(mine.preprocessing)(large))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def test_numbers_are_told_in_the_student_s_unit() -> None:
    student, mine = (replace(facts(), classes=(), problem=Regression(*unit)) for unit in ((10.0, 2.0), (13.0, 4.0)))
    network = network_of(mine, settings().given, seed=1).module
    images = torch.randn(3, 3, 32, 32)
    found = Teacher(network, mine, student, "w", CPU)(images)
    torch.testing.assert_close(found * 2 + 10, network(images) * 4 + 13, rtol=1e-4, atol=1e-4)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    made = World(tmp_path / "images", Cache(tmp_path / "node", 10**8), 8)
    made.folder.mkdir()
    for module in ("training.feed", "training.reuse"):
        monkeypatch.setattr(f"raycnn.{module}.stream", made.stream)
    yield made
    for feed in made.feeds:
        feed.close()


def answers(
    world: World, reuse: str, augment: AugmentConfig | None, seed: int = 5
) -> tuple[list[tuple[Tensor, Any]], int, Feed]:
    """The targets of two and a half epochs, and how often the teacher was asked."""
    base = {"run.storage": str(world.folder.parent), "cache.folder": str(world.cache.folder), "train.reuse": reuse}
    config = settings(**base, **{"train.chunk": 4})
    body = Body(config, facts_of(config, CLASSES), CPU)
    teacher = Teacher(network_of(facts(), config.given, seed=seed).module, facts(), body.facts, f"{seed}", CPU)
    asked = []
    teacher.network.register_forward_pre_hook(lambda module, given: asked.append(len(given[0])))
    body.prefix.teacher = teacher
    storage = open_store(config.run.storage)
    feed = feed_of(config, world.task(augment), body, Ranks(), 0, 8, storage, "s", Clock(), one_node=True)
    if isinstance(feed, FillingFeed):
        world.feeds.append(feed)
    found = []
    for step in range(8):
        batch = feed.batch(step)
        inputs = feed.inputs(batch, {*feed.prefix.always, 0})
        targets, valid = feed.targets(batch, inputs)
        assert isinstance(targets, Taught)
        found.append((targets.teacher_NK[valid], targets.own))
        if step == 2:
            for scanned in feed.validation():
                feed.inputs(scanned, {0})
    return found, sum(asked), feed


@pytest.mark.parametrize("augment", [None, AugmentConfig(crop_scale=None, vflip=0.5, mixup=0.4)], ids=["still", "late"])
def test_what_is_kept_of_its_answers_is_what_it_says(world: World, augment: AugmentConfig | None) -> None:
    plain, every, feed = answers(world, "none", augment)
    assert type(feed) is Feed
    kept, asked, feed = answers(world, "auto", augment)
    assert isinstance(feed, FillingFeed)
    for (one, own), (other, _) in zip(plain, kept, strict=True):
        assert torch.equal(one, other)
        assert isinstance(own, Mixed) == (augment is not None)
    assert len({tuple(one.flatten().tolist()) for one, _ in plain}) > 3
    assert asked < every if augment is None else asked == every
    plain, kept = (answers(world, reuse, augment, seed=6)[0] for reuse in ("none", "auto"))  # another teacher
    assert all(torch.equal(one, other) for (one, _), (other, _) in zip(plain, kept, strict=True))


def student(storage: Path, **changes: Any) -> Config:
    return load_config(config(storage, "student"), {"loss.distill.teacher": "run:source", **changes})


def test_a_run_pins_its_teacher_and_learns_from_that_one(tmp_path: Path) -> None:
    weights, made = trained(config(tmp_path, "source"), 10, 0.5), student(tmp_path)
    create_run(made, store_of(made), "index", CLASSES)
    told = tree(made)["teacher"]
    assert (told["run"], told["step"], len(told["weights"])) == ("source", 10, 64)
    assert tree(made)["parent"] is None
    trained(config(tmp_path, "source"), 20, 0.9)
    teacher = load_teacher(made, facts_of(made, CLASSES), read_run(store_of(made)), CPU)
    assert teacher is not None
    assert all(torch.equal(tensor, weights[name]) for name, tensor in teacher.network.state_dict().items())
    assert load_teacher(config(tmp_path, "student"), facts_of(made, CLASSES), None, CPU) is None
    assert "teacher" not in tree(config(tmp_path, "source"))


def test_a_teacher_that_is_gone_or_another_is_named_in_one_line(tmp_path: Path) -> None:
    made = student(tmp_path)
    with pytest.raises(CheckpointError, match=r"the teacher is gone: no such run"):
        check_teacher(made, facts_of(made, CLASSES), None)
    trained(config(tmp_path, "source"), 10, 0.5)
    create_run(made, store_of(made), "index", CLASSES)
    told = read_run(store_of(made))
    assert told is not None
    check_teacher(made, facts_of(made, CLASSES), told)
    other = replace(told, teacher={**(told.teacher or {}), "weights": "0" * 64})
    with pytest.raises(CheckpointError, match="run:source is not the teacher that the run began with"):
        check_teacher(made, facts_of(made, CLASSES), other)
    source = store_of(config(tmp_path, "source"))
    source.delete([entry.key for entry in source.list("checkpoints/")])
    with pytest.raises(CheckpointError, match=r"the teacher is gone: no checkpoint 10.*loss\.distill\.teacher"):
        load_teacher(made, facts_of(made, CLASSES), told, CPU)


def test_a_teacher_of_other_classes_or_another_task_is_refused(tmp_path: Path) -> None:
    made = student(tmp_path)
    trained(config(tmp_path, "source"), 10, 0.5, ("a", "b"))
    with pytest.raises(CheckpointError, match="has other classes: c"):
        check_teacher(made, facts_of(made, CLASSES), None)
    with pytest.raises(CheckpointError, match="task is single-label, and this run's binary"):
        check_teacher(made, facts_of(made, ("a", "b"), Binary()), None)
    check_teacher(made, facts_of(made, ("a", "b")), None)


def test_runs_are_found_from_another_storage(tmp_path: Path) -> None:
    made = student(tmp_path, **{"model.weights": "run:source"})
    weights = trained(config(tmp_path, "source"), 10, 0.5)
    create_run(made, store_of(made), "index", CLASSES)
    there = load_config(made, {"run.storage": str(tmp_path / "student" / "search"), **from_elsewhere(made)})
    assert place_of(there, there.model.weights).uri == place_of(made, "run:source").uri
    trained(config(tmp_path, "source"), 20, 0.9)
    create_run(there, store_of(there), "index", CLASSES, told=read_run(store_of(made)))
    pinned = json.loads(store_of(there).get("run.json"))
    assert (pinned["parent"]["step"], pinned["teacher"]["step"]) == (10, 10)
    teacher = load_teacher(there, facts_of(there, CLASSES), read_run(store_of(there)), CPU)
    assert teacher is not None
    assert torch.equal(teacher.network.c1[0].weight, weights["c1.0.weight"])  # type: ignore[index, union-attr]


def test_without_an_index_there_is_no_teacher_and_trials_with_other_teachers_share_nothing() -> None:
    made = settings()
    loss = loss_of(made, facts_of(made, CLASSES), None, CPU)
    logits, _, labels, valid = batch(3)
    torch.testing.assert_close(loss(logits, labels, valid), cross_entropy_sum(logits, labels, valid))
    assert share_key(made) == share_key(settings(**{"loss.distill.weight": 0.9}))
    assert share_key(made) != share_key(settings(**{"loss.distill.teacher": "run:u"}))
