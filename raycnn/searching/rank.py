"""One rank of a pack: the network once, its prefix and stream, and the suffixes of the trials that share them."""

from __future__ import annotations

import copy
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch

from raycnn.config import Config, load_config
from raycnn.data.manifest import Index, read_index
from raycnn.errors import CheckpointError, RaycnnError, encode_error
from raycnn.searching.costs import Choice, Costs
from raycnn.searching.measure import measure
from raycnn.searching.records import FOLDER
from raycnn.searching.reuse import Reuse, ReusingFeed
from raycnn.searching.shared import share_key, start_folder
from raycnn.storage import Store, open_store
from raycnn.storage.cache import Cache
from raycnn.storage.lease import LeaseRecord, adopt
from raycnn.training import checkpoint
from raycnn.training.badrows import BadRows
from raycnn.training.checkpoint import Commit
from raycnn.training.clock import Clock
from raycnn.training.device import prepare
from raycnn.training.feed import Feed, Task
from raycnn.training.loop import train
from raycnn.training.member import Member
from raycnn.training.ranks import Ranks
from raycnn.training.recorder import Recorder, Run
from raycnn.training.run import create_run
from raycnn.training.serialize import decode_optimizer, decode_weights
from raycnn.training.setup import INDEX_COLUMNS, Body, facts_of, task_of, weights_of_classes
from raycnn.training.state import TrainState

_KEPT_SHARED: Final = 4


@dataclass(frozen=True)
class PackJob:
    """What the driver tells every pack.

    Args:
        config: the search's.
        index: hash of the pinned index.
        owner: of the lease of the run.
        task_cpus: Ray CPUs of one decoding task.
    """

    config: Config
    index: str
    owner: str
    task_cpus: float


@dataclass(frozen=True)
class Place:
    """Where a trial starts: the lease epoch of its folder, and the commit it goes on from, in which trial's folder."""

    record: LeaseRecord
    source: str
    commit: Commit | None
    copied: bool


@dataclass(frozen=True)
class Keeping:
    """What the packs keep in the cache of their nodes: a choice for each depth; parts, and whose turn is first."""

    choices: dict[int, Choice]
    turn: int
    turns: int


@dataclass
class Shared:
    """What trials of one share key have in common."""

    body: Body
    feed: Feed
    bad_rows: BadRows
    clock: Clock


class PackRank:
    """Trains members on one device; every rank of a pack is told the same in the same order.

    Args:
        job: the driver's word.
        ranks: of the pack.
        device: where to compute.
    """

    def __init__(self, job: PackJob, ranks: Ranks, device: torch.device) -> None:
        self._job, self._ranks, self._device = job, ranks, device
        prepare(device, job.config.train.threads)
        storage = open_store(job.config.run.storage)
        self._run: Store = storage.child(job.config.run.name)
        self._index: Index = read_index(storage, job.index, columns=INDEX_COLUMNS)
        self._keeping = Keeping({}, 0, 1)
        search = job.config.search
        self._cache = Cache(Path(search.cache or tempfile.gettempdir()), search.cache_bytes)
        self._shared: dict[str, Shared] = {}
        self._members: dict[str, tuple[str, Member]] = {}

    def measure(self, values: list[dict[str, Any]]) -> Costs:  # all ranks
        """What trials with these values cost, one for each depth."""
        configs = [load_config(self._job.config, each) for each in values]
        key = share_key(configs[0])
        shared = self._shared[key] = self._share(configs[0])
        return measure(configs, shared.body, shared.feed.task, self._ranks.world, self._cache)

    def keep(self, keeping: Keeping) -> None:  # all ranks
        """What to keep from now on; called before the first trial joins."""
        self._keeping = keeping
        for shared in self._shared.values():
            shared.feed = self._feed(shared.body, shared.feed.task, shared.feed.total)

    def place(self, trial: str, source: tuple[str, int] | None) -> Place:
        """Take the trial's folder; find where it goes on from: its newest commit, or `source`, another's (id, step)."""
        store = self._folder(trial)
        if source is None or source[0] == trial:
            record = adopt(store, self._job.owner, lambda held: checkpoint.newest_step(store, held))
            return Place(record, trial, checkpoint.latest(store, record), copied=False)
        found = checkpoint.commits(self._folder(source[0]), None)
        commit = next((each for each in found if each.step <= source[1]), None)
        if commit is None:
            raise CheckpointError("the trial to copy has no checkpoint", where=f"{FOLDER}/{source[0]}")
        # its own commits beyond the copied step are not believed any more
        record = adopt(store, self._job.owner, lambda held: commit.step)
        return Place(record, source[0], commit, copied=True)

    def join(self, trial: str, values: dict[str, Any], place: Place, spent_s: float) -> tuple[str, int]:  # all ranks
        """Take a trial in; its share key, and the step it stands at."""
        config = load_config(self._job.config, values)
        key = share_key(config)
        shared = self._shared.pop(key) if key in self._shared else self._share(config)
        self._shared[key] = shared
        classes = weights_of_classes(config, facts_of(config, self._index.classes), self._index)
        learner = shared.body.copied_learner(config, self._ranks.world, classes)
        state = TrainState(facts_of(config, self._index.classes))
        if place.commit is not None:
            files = checkpoint.verified(self._folder(place.source), place.commit)
            state = TrainState.decode(files["state.json"])
            learner.restore(decode_weights(files["weights.safetensors"]), decode_optimizer(files["optimizer.pt"]))
        clock = Clock()
        clock.seconds["before"] = spent_s
        recorder = Recorder(self._record(trial, config, place), place.commit)
        member = Member(learner, state, recorder, shared.feed.task, clock, alone=True)
        if place.copied:
            member.commit(evaluated=True)
        shared.feed.total = max(shared.feed.total, member.total)
        self._members[trial] = key, member
        self._forget()
        return key, member.state.step

    def next_stop(self, trials: list[str]) -> int:
        """The step after which one of these trials, which stand together, is evaluated next."""
        members = [self._members[trial][1] for trial in trials]
        return min(member.next_evaluation() for member in members)

    def train(self, trials: list[str]) -> dict[str, dict[str, Any]]:  # all ranks
        """Train these trials, which stand together, to the next evaluation; how each came out."""
        members = {trial: self._members[trial][1] for trial in trials}
        shared = self._shared[self._members[trials[0]][0]]
        until = self.next_stop(trials)
        if isinstance(shared.feed, ReusingFeed):
            with shared.clock("fill"):
                first = next(iter(members.values())).state.step
                shared.feed.prepare(first, until, {member.learner.base for member in members.values()})
        train(list(members.values()), shared.feed, self._ranks, shared.bad_rows, None, shared.clock, until)
        for member in members.values():
            member.error = member.error or member.recorder.close()
        return {trial: _outcome(member) for trial, member in members.items()}

    def stop(self, trial: str) -> None:
        """Leave in the middle, from any thread: the loop goes on without it after this step."""
        if trial in self._members:
            self._members[trial][1].status = "stopped"

    def drop(self, trial: str) -> None:  # all ranks
        """Forget a trial; what it committed stays."""
        self._members.pop(trial, None)

    def counters(self) -> dict[str, Any]:
        """Rows through the prefix to each depth's cut, seconds by phase, and rows read; sums over share keys."""
        rows: dict[int, int] = {}
        seconds: dict[str, float] = {}
        for shared in self._shared.values():
            for depth, count in shared.body.prefix.rows.items():
                rows[depth] = rows.get(depth, 0) + count
            for phase, value in shared.clock.seconds.items():
                seconds[phase] = seconds.get(phase, 0.0) + value
        return {"rows": rows, "seconds": seconds}

    def _folder(self, trial: str) -> Store:
        return self._run.child(f"{FOLDER}/{trial}")

    def _record(self, trial: str, config: Config, place: Place) -> Run | None:
        if self._ranks.rank:
            return None
        store = self._folder(trial)
        create_run(config, store, self._index.hash, self._index.classes)
        return Run(store, config, place.record, self._ranks.world)

    def _share(self, config: Config) -> Shared:
        facts = facts_of(config, self._index.classes)
        body = Body(config, facts, self._device)
        start = self._run.child(start_folder(config))
        commit = checkpoint.latest(start, None)
        if commit is None:
            raise CheckpointError("the trials' starting weights are gone", where=start.uri, fix="run it again")
        weights = checkpoint.verified(start, commit, ["weights.safetensors"])["weights.safetensors"]
        body.module.load_state_dict(decode_weights(weights))
        task = task_of(config, facts, self._index, self._job.task_cpus, self._ranks.world)
        feed = self._feed(body, task, task.plan.steps(config.train.epochs))
        index, budget = self._index, config.data.bad_image_budget
        return Shared(body, feed, BadRows(task.table, len(index.manifest), len(index.quarantine), budget), Clock())

    def _feed(self, body: Body, task: Task, total: int) -> Feed:
        choices = self._keeping.choices
        if all(choice == "share" for choice in choices.values()):
            return Feed(task, body.prefix, self._device, self._ranks, total)
        reuse = Reuse(self._cache, choices, self._keeping.turn, self._keeping.turns)
        identity = {depth: body.identity(depth) for depth in choices}
        return ReusingFeed(task, body.prefix, self._device, self._ranks, total, identity, reuse)

    def _forget(self) -> None:
        """Drop networks and streams that no trial uses, the oldest first, beyond a few."""
        used = {key for key, _ in self._members.values()}
        for key in [key for key in self._shared if key not in used][: max(0, len(self._shared) - _KEPT_SHARED)]:
            feed = self._shared.pop(key).feed
            if isinstance(feed, ReusingFeed):
                feed.close()


def _outcome(member: Member) -> dict[str, Any]:
    state = member.state
    evaluation = state.evaluations[-1] if state.evaluations else None
    return {
        "step": state.step,
        "evaluation": len(state.evaluations),
        "metrics": copy.copy(evaluation["metrics"]) if evaluation and evaluation["step"] == state.step else None,
        "seconds": member.clock.total,
        "status": member.status,
        "error": encode_error(member.error) if isinstance(member.error, RaycnnError) else None,
    }
