"""One rank of a pack: the network once, its prefix and stream, and the suffixes of the trials that share them."""

from __future__ import annotations

import copy
import gc
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import torch

from raycnn.config import Config, identity, load_config
from raycnn.data.folds import read_rows
from raycnn.data.here import Block
from raycnn.data.manifest import Index
from raycnn.errors import CheckpointError, RaycnnError, encode_error
from raycnn.results.inference import Scorer
from raycnn.searching.records import FOLDER
from raycnn.searching.shared import share_key
from raycnn.searching.shares import PackJob, Shares
from raycnn.storage import Store, open_store
from raycnn.storage.lease import LeaseRecord, adopt
from raycnn.training import checkpoint
from raycnn.training.checkpoint import Commit
from raycnn.training.clock import Clock
from raycnn.training.device import prepare
from raycnn.training.loop import train
from raycnn.training.member import Member
from raycnn.training.ranks import Ranks
from raycnn.training.recorder import Recorder, Run
from raycnn.training.reuse import ReusingFeed
from raycnn.training.run import create_run, read_run
from raycnn.training.serialize import decode_optimizer, decode_weights
from raycnn.training.setup import INDEX_COLUMNS, loss_of
from raycnn.training.state import TrainState


@dataclass(frozen=True)
class Place:
    """Where a trial starts: the lease epoch of its folder, and the commit it goes on from, in which trial's folder."""

    record: LeaseRecord
    source: str
    commit: Commit | None
    copied: bool


class PackRank:
    """Trains members on one device; every rank of a pack is told the same in the same order.

    Args:
        job: the driver's word.
        ranks: of the pack.
        device: where to compute.

    Attributes:
        leaving: whether to commit after this step and stop; of rank 0, which the others follow.
    """

    def __init__(self, job: PackJob, ranks: Ranks, device: torch.device) -> None:
        self._job, self._ranks, self._device = job, ranks, device
        prepare(device, job.config.train.threads)
        storage = open_store(job.config.run.storage)
        self._run: Store = storage.child(job.config.run.name)
        self._index: Index = read_rows(storage, job.index, identity(job.config), INDEX_COLUMNS)
        self.shares = Shares(job, storage, self._index, ranks, device)
        self._members: dict[str, tuple[str, Member]] = {}
        self._scorer: tuple[str, Scorer] | None = None
        self.leaving = False

    def do(self, method: str, *arguments: Any) -> Any:  # all ranks
        """Call a method by its dotted name, of it or of its shares."""
        return attrgetter(method)(self)(*arguments)

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
        shared = self.shares.of(config)
        loss = loss_of(config, shared.body.facts, shared.feed.task.table, self._device)
        learner = shared.body.copied_learner(config, self._ranks, loss)
        state = TrainState(shared.body.facts)
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
        self.shares.forget({used for used, _ in self._members.values()})
        return key, member.state.step

    def train(self, trials: list[str]) -> dict[str, dict[str, Any]]:  # all ranks
        """Train these trials, which stand together, to the next evaluation unless it is leaving; how each came out."""
        members = {trial: self._members[trial][1] for trial in trials}
        shared = self.shares[self._members[trials[0]][0]]
        until = min(member.next_evaluation() for member in members.values())
        if isinstance(shared.feed, ReusingFeed):
            with shared.clock("fill"):
                first = next(iter(members.values())).state.step
                shared.feed.prepare(first, until, lambda: self.leaving)
        together = list(members.values())
        train(together, shared.feed, self._ranks, shared.bad_rows, None, shared.clock, until, lambda: self.leaving)
        for member in together:
            if member.state.step != until and not member.ended:
                member.commit(evaluated=False)
            member.error = member.error or member.recorder.close()
        return {trial: _outcome(member) for trial, member in members.items()}

    def stop(self, trial: str) -> None:
        """Leave in the middle, from any thread: the loop goes on without it after this step."""
        if trial in self._members:
            self._members[trial][1].status = "stopped"

    def drop(self, trial: str) -> None:  # all ranks
        """Forget a trial; what it committed stays."""
        self._members.pop(trial, None)
        gc.collect()  # its network is a cycle

    def score(self, store: Store, commit: Commit, config: Config, block: Block) -> Block:
        """See inference.Scorer; the last commit's network is kept."""
        what = f"{store.uri}/{commit.name}"
        if self._scorer is None or self._scorer[0] != what:
            self._scorer = what, Scorer(store, commit, config)
        return self._scorer[1](block)

    def _folder(self, trial: str) -> Store:
        return self._run.child(f"{FOLDER}/{trial}")

    def _record(self, trial: str, config: Config, place: Place) -> Run | None:
        if self._ranks.rank:
            return None
        store = self._folder(trial)
        if read_run(store) is None:  # a population changes a trial's settings in mid-run
            told = read_run(self._run)  # its parent is the search's
            create_run(config, store, self._index.hash, self._index.classes, told=told)
        return Run(store, config, place.record, self._ranks.world)


def _outcome(member: Member) -> dict[str, Any]:
    state = member.state
    evaluation = state.evaluations[-1] if state.evaluations else None
    return {
        "step": state.step,
        "epochs": member.epochs,
        "evaluation": len(state.evaluations),
        "metrics": copy.copy(evaluation["metrics"]) if evaluation and evaluation["step"] == state.step else None,
        "seconds": member.clock.total,
        "status": member.status,
        "error": encode_error(member.error) if isinstance(member.error, RaycnnError) else None,
    }


def open_rank(job: PackJob, rendezvous: str | None, rank: int, world: int) -> PackRank:
    """The rank of this process; of several, once all have met at the address `rendezvous`."""
    import ray

    if rendezvous is not None:
        backend = "nccl" if torch.cuda.is_available() else "gloo"
        torch.distributed.init_process_group(backend, init_method=rendezvous, rank=rank, world_size=world)
    return PackRank(job, Ranks(), torch.device("cuda" if ray.get_gpu_ids() else "cpu"))
