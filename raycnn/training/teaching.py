"""The teacher of a run: where it lies, whether it can teach, and its network."""

from __future__ import annotations

from typing import Final

import torch

from raycnn.config import Config
from raycnn.errors import CheckpointError
from raycnn.models.weights import load_state
from raycnn.storage import Store
from raycnn.training import checkpoint
from raycnn.training.checkpoint import Commit
from raycnn.training.run import RunFacts, find_commit, place_of, teacher_of
from raycnn.training.serialize import decode_weights
from raycnn.training.setup import call_of, network_of
from raycnn.training.state import NetworkFacts, TrainState
from raycnn.training.teacher import Teacher

_WHERE: Final = "loss.distill.teacher"


def check_teacher(config: Config, student: NetworkFacts, told: RunFacts | None) -> None:
    """Refuse a teacher that is not there or that says something else, before anything starts.

    Raises:
        CheckpointError
    """
    found = _find(config, told)
    if found is not None:
        _facts(config, *found, student)


def load_teacher(config: Config, student: NetworkFacts, told: RunFacts | None, device: torch.device) -> Teacher | None:
    """The teacher that the config names, from its checkpoint: as `told`, the run's or its search's facts, pins it.

    Raises:
        CheckpointError: it is not there any more, or cannot teach this student.
    """
    found = _find(config, told)
    if found is None:
        return None
    store, commit = found
    facts = _facts(config, store, commit, student)
    network = network_of(facts, config.given).module
    weights = checkpoint.verified(store, commit, ["weights.safetensors"])["weights.safetensors"]
    load_state(network, decode_weights(weights), where=f"{store.uri}/{commit.name}")
    digest = commit.manifest["files"]["weights.safetensors"]["sha256"] + call_of(facts, config.given)
    return Teacher(network, facts, student, digest, device)


def _find(config: Config, told: RunFacts | None) -> tuple[Store, Commit] | None:
    teacher = config.loss.distill.teacher
    if teacher == "none":
        return None
    fix = "restore it, or start under a new run.name with another one"
    try:
        pinned = teacher_of(config, told)
        assert pinned is not None
        store = place_of(config, teacher)
        _, commit = find_commit(store, pinned["step"])
    except CheckpointError as error:
        raise CheckpointError(f"the teacher is gone: {error.what}, {error.where}", where=_WHERE, fix=fix) from None
    if commit.manifest["files"]["weights.safetensors"]["sha256"] != pinned["weights"]:
        raise CheckpointError(f"{teacher} is not the teacher that the run began with", where=_WHERE, fix=fix)
    return store, commit


def _facts(config: Config, store: Store, commit: Commit, student: NetworkFacts) -> NetworkFacts:
    """Of the teacher's network, if it answers what the student is asked."""
    facts = TrainState.decode(checkpoint.verified(store, commit, ["state.json"])["state.json"]).network
    fix = "name a run that was trained for the same task and classes"
    if facts.problem.task != student.problem.task:
        what = f"the teacher's task is {facts.problem.task}, and this run's {student.problem.task}"
        raise CheckpointError(what, where=_WHERE, fix=fix)
    if facts.classes != student.classes:
        other = sorted(set(facts.classes) ^ set(student.classes))
        what = f"the teacher has other classes: {', '.join(other[:20]) or 'the same in another order'}"
        raise CheckpointError(what, where=_WHERE, fix=fix)
    config.given.require(facts.name)
    return facts
