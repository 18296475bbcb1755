"""Asynchronous successive halving: trials pause at rungs, and the best of those that came go on."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler

from raycnn.config import SearchConfig
from raycnn.searching.records import TrialRecord
from raycnn.training.metrics import Mode


class Places(Protocol):
    """Where trials train; one that waits at a rung takes no place."""

    def rest(self, trial: str) -> None:
        """It gives its place up, for now."""

    def resume(self, trial: str) -> str:
        """It takes one again: in which pack."""


@dataclass(frozen=True)
class Rung:
    """Where trials of one group (of an unfreezing depth) are compared: after so many evaluations."""

    group: str
    evaluations: int


class Halving(FIFOScheduler):
    """Asynchronous successive halving (Li et al., 2020, algorithm 2) at equal epochs.

    Rungs lie at grace, grace x reduction, ... evaluations; each depth has its own. Of n trials that have come to a rung
    the best n // reduction go on. The others pause and leave their places to others: they go on when more have come and
    they are still among the best. When nobody can come any more, the best goes on in any case, the rest is stopped.

    Nobody is judged before those that were on their way to the same rung when it came: trials of a pack go in step, so
    which of them comes first says nothing. Those that start later are not waited for.

    After a restart rungs count as before. The records do not tell who waited at a rung and who had just gone on from
    it: a trial whose last evaluation lies on one goes on if it is among the best and nobody is on the way there.

    The rungs are our own: Ray's AsyncHyperBandScheduler judges a trial on arrival, by those before it, so that it stops
    none of those that come in ascending order.

    Attributes:
        places: told who gives its place up, and asked for another.
        concurrent: trials that train at once; None: no limit.
    """

    def __init__(
        self, search: SearchConfig, metric: str, mode: Mode, num_evaluations: int, history: Sequence[TrialRecord] = ()
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._sign, self._reduction = (1.0 if mode == "max" else -1.0), search.reduction
        self._levels = _levels(search.grace, search.reduction, num_evaluations)
        self._values: dict[Rung, dict[str, float]] = defaultdict(dict)
        self._groups: dict[str, str] = {}  # of those that have not ended, as far as we know
        self._trials: dict[str, Any] = {}  # Tune's
        self._paused: dict[str, Rung] = {}
        self._awaited: dict[str, set[str]] = {}
        self._no_more = False
        self.places: Places | None = None
        self.concurrent: int | None = None
        for record in history:
            self._replay(record, metric)
        self._settle()

    def __getstate__(self) -> dict[str, Any]:
        """Nothing, for Tune's snapshots: it is rebuilt from our own records."""
        return {}

    def has_room(self) -> bool:
        """Whether a new trial can start, beside those that run and those that can go on."""
        return self.concurrent is None or self._num_active() + len(self._promotable()) < self.concurrent

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        """A new trial, or one of before a restart, which may have been waiting at a rung."""
        name = trial.config["id"]
        self._trials[name], self._groups[name] = trial, str(trial.config["depth"])
        if name in self._paused:
            trial.set_status(Trial.PAUSED)  # type: ignore[no-untyped-call]
            trial.init_local_path()  # type: ignore[no-untyped-call]  # where Tune looks in the end, also if it never runs
            self._rest(name)

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """CONTINUE, or PAUSE at a rung."""
        name = trial.config["id"]
        rung = self._count(name, result["depth"], result["evaluation"], result["objective"])
        if rung is None:
            return str(self.CONTINUE)
        self._awaited[name] = self._on_their_way(rung)
        if not self._awaited[name] and name in self._best(rung):
            return str(self.CONTINUE)
        self._paused[name] = rung
        self._rest(name)
        return str(self.PAUSE)

    def on_trial_complete(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> None:
        """Takes the last result of a trial that ended by itself: Tune shows it nowhere else."""
        if math.isfinite(result.get("objective", math.nan)):  # one that failed has none
            self._count(trial.config["id"], result["depth"], result["evaluation"], result["objective"])
        self._forget(trial)

    def on_trial_remove(self, tune_controller: Any, trial: Trial) -> None:
        """Stopped while it waited."""
        self._forget(trial)

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:
        """Nobody waits for it any more."""
        self._forget(trial)

    def choose_trial_to_run(self, tune_controller: Any) -> Trial | None:
        """Who can go on, from the highest rung first; then new ones. Stops those that will never go on."""
        self._no_more = tune_controller.search_alg.is_finished()
        for name in self._hopeless():
            tune_controller.stop_trial(self._trials[name])
        promotable = self._promotable()
        if promotable and (self.concurrent is None or self._num_active() < self.concurrent):
            trial: Trial = self._trials[promotable[0]]
            del self._paused[promotable[0]]
            if self.places is not None:
                trial.set_config({**trial.config, "pack": self.places.resume(promotable[0])})  # type: ignore[no-untyped-call]
            return trial
        return next((trial for trial in self._trials.values() if trial.status == Trial.PENDING), None)

    def _replay(self, record: TrialRecord, metric: str) -> None:
        rung = None
        worst = -self._sign * math.inf
        for number, evaluation in enumerate(record.evaluations, start=1):
            value = evaluation.metrics[metric]
            rung = self._count(record.id, record.depth, number, worst if value is None else value)
        if record.status == "running":
            self._groups[record.id] = record.depth
            if rung is not None:
                self._paused[record.id] = rung

    def _settle(self) -> None:
        """After a restart: let those go on at once that need not wait; they are on their way to the next rung."""
        for rung in sorted(set(self._paused.values()), key=lambda each: each.evaluations):
            on_their_way, best = self._on_their_way(rung), self._best(rung)
            for name in [name for name, at in self._paused.items() if at == rung]:
                self._awaited[name] = on_their_way
                if not on_their_way and name in best:
                    del self._paused[name]

    def _count(self, name: str, group: str, evaluations: int, value: float) -> Rung | None:
        """Enter a value where the trial has not been; the rung it stands on now, if it has come to one."""
        came = [
            rung for rung in self._rungs(group) if rung.evaluations <= evaluations and name not in self._values[rung]
        ]
        for rung in came:
            self._values[rung][name] = self._sign * value
        return came[-1] if came else None

    def _rungs(self, group: str) -> list[Rung]:
        return [Rung(group, evaluations) for evaluations in self._levels]

    def _to_come(self, rung: Rung) -> Iterator[str]:
        """Those of its group that have not ended, and not been on this rung."""
        for name, group in self._groups.items():
            trial = self._trials.get(name)
            ended = self._no_more if trial is None else trial.is_finished()
            if group == rung.group and name not in self._values[rung] and not ended:
                yield name

    def _on_their_way(self, rung: Rung) -> set[str]:
        """Those that train, or will, and come to this rung next."""
        lower = [each for each in self._rungs(rung.group) if each.evaluations < rung.evaluations]
        return {
            name
            for name in self._to_come(rung)
            if name not in self._paused and all(name in self._values[each] for each in lower)
        }

    def _best(self, rung: Rung) -> list[str]:
        """Those that may go on from it as things stand, the best first."""
        values = self._values[rung]
        number = max(len(values) // self._reduction, int(self._closed(rung)))
        return sorted(values, key=lambda name: (-values[name], name))[:number]

    def _closed(self, rung: Rung) -> bool:
        return self._no_more and not any(self._to_come(rung))

    def _promotable(self) -> list[str]:
        """Those that are paused and can go on, from the highest rung, the best first."""
        found = []
        for rung in sorted(set(self._paused.values()), key=lambda each: (-each.evaluations, each.group)):
            on_their_way = self._on_their_way(rung)
            waiting = [name for name in self._best(rung) if self._waits(name, rung)]
            found += [name for name in waiting if not self._awaited[name] & on_their_way]
        return found

    def _hopeless(self) -> list[str]:
        found = []
        for rung in filter(self._closed, set(self._paused.values())):
            best = self._best(rung)
            found += [name for name in self._paused if self._waits(name, rung) and name not in best]
        return sorted(found)

    def _waits(self, name: str, rung: Rung) -> bool:
        trial = self._trials.get(name)
        return self._paused.get(name) == rung and trial is not None and trial.status == Trial.PAUSED

    def _num_active(self) -> int:
        return sum(trial.status in (Trial.PENDING, Trial.RUNNING) for trial in self._trials.values())

    def _rest(self, name: str) -> None:
        if self.places is not None:
            self.places.rest(name)

    def _forget(self, trial: Trial) -> None:
        name = trial.config["id"]
        self._groups.pop(name, None)
        self._trials.pop(name, None)
        self._paused.pop(name, None)


def _levels(grace: int, reduction: int, num_evaluations: int) -> list[int]:
    found = [grace]
    while found[-1] * reduction < num_evaluations:
        found.append(found[-1] * reduction)
    return found
