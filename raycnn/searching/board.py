"""The trials as the driver knows them: which comes next, what each reported, how it ended; all of it kept at once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from raycnn.config import Config, SearchConfig, load_config
from raycnn.errors import RaycnnError, decode_error
from raycnn.searching.records import Evaluation, TrialRecord, write
from raycnn.storage import Store
from raycnn.training.metrics import Mode

Values = Callable[[int, Sequence[TrialRecord]], dict[str, Any]]
Cost = Callable[[dict[str, Any]], float]


@dataclass(frozen=True)
class Stage:
    """Some trials to run.

    Args:
        name: search or confirm.
        numbers: of the trials, in the order in which they start.
        values: what trial `number` tries, given the records so far.
        cost: relative cost of a trial with these values, to share trials out to packs.
        all_needed: whether a trial that fails ends the stage, with its error; the next start tries it again.
    """

    name: Literal["search", "confirm"]
    numbers: Sequence[int]
    values: Values
    cost: Cost
    all_needed: bool = False

    @property
    def num_trials(self) -> int:
        """How many there are in all."""
        return len(self.numbers)

    def trial_id(self, number: int) -> str:
        """Name of its folder."""
        return f"{number:04d}" if self.name == "search" else f"{self.name}-{number:04d}"


def starting_order(search: SearchConfig, total: int, values: Values, cost: Cost) -> Sequence[int]:
    """The numbers of `total` trials as they start: the longest first, so that packs end together, where all of them
    will run to their end, whatever others find.
    """
    bounded = search.budget_s is not None or search.budget_gpu_hours is not None
    if bounded or search.scheduler != "none" or search.searcher != "random":
        return range(total)
    return sorted(range(total), key=lambda number: -cost(values(number, ())))


class Board:
    """The records of one stage, and what Tune is told of them.

    Args:
        store: the run's folder.
        config: the search's, with train.metric the one that is compared.
        mode: whether more or less of the metric is better.
        stage: which trials.
        packs: names of the packs' actors.
        known: what earlier starts of the search kept.
        prepare: called with a trial's config before it starts.
    """

    def __init__(
        self, store: Store, config: Config, mode: Mode, stage: Stage, packs: Sequence[str],
        known: Sequence[TrialRecord], prepare: Callable[[Config], None],
    ) -> None:  # fmt: skip
        self._store, self._config, self._mode, self._stage = store, config, mode, stage
        self.records = {record.id: record for record in known}
        self.fatal: RaycnnError | None = None
        self._prepare = prepare
        self._load = dict.fromkeys(packs, 0.0)
        self._waiting = [record.id for record in known if record.stage == stage.name and record.status == "running"]
        self._pack_of: dict[str, str] = {}
        self._numbers = iter(stage.numbers)

    def next(self) -> dict[str, Any] | None:
        """The config of the next trial for Tune: first those that were interrupted, then new ones; None: no more."""
        if self._waiting:
            return self._start(self.records[self._waiting.pop(0)])
        for number in self._numbers:
            trial = self._stage.trial_id(number)
            if trial in self.records:
                continue
            values = self._stage.values(number, list(self.records.values()))
            depth = load_config(self._config, values).model.unfreeze_text
            record = TrialRecord(trial, values, depth, stage=self._stage.name)
            self._keep(record)
            return self._start(record)
        return None

    def reported(self, trial: str, values: dict[str, Any], outcome: dict[str, Any]) -> None:
        """A trial's evaluation, failure or end; `values`: its settings now, which a scheduler may have changed."""
        record = self.records[trial]
        if outcome.get("fatal"):
            self.fatal = decode_error(outcome["fatal"])
            return
        if outcome.get("error") and self._stage.all_needed:
            error = decode_error(outcome["error"])
            told = ", ".join(f"{path} {value}" for path, value in values.items())
            self.fatal = type(error)(f"{told}: {error.what}", where=error.where, fix=error.fix)
            return
        record = replace(record, values=values)
        metrics, step = outcome.get("metrics"), outcome.get("step", 0)
        if metrics:
            earlier = tuple(each for each in record.evaluations if each.step < step)
            evaluation = Evaluation(step, outcome["epochs"], round(outcome["seconds"], 3), metrics)
            record = replace(record, evaluations=(*earlier, evaluation))
        if outcome.get("error"):
            record = replace(record, status="failed", reason=str(decode_error(outcome["error"])))
        elif outcome.get("status") in ("finished", "stopped_early"):
            early = f"no better for train.patience {self._config.train.patience}"
            record = replace(record, status="finished", reason=early if outcome["status"] != "finished" else None)
        self._keep(record)

    def ended(self, trial: str, reason: str, *, failed: bool = False) -> None:
        """Tune is done with a trial; if it did not end by itself, this is why. What a lost pack ends goes on later."""
        record = self.records[trial]
        if record.status == "running" and self.fatal is None:
            self._keep(replace(record, status="failed" if failed else "stopped", reason=reason))
        self.rest(trial)

    def rest(self, trial: str) -> None:
        """A trial gives its place in a pack up, for good or for now."""
        if trial in self._pack_of:
            self._load[self._pack_of.pop(trial)] -= self._stage.cost(self.records[trial].values)

    def resume(self, trial: str) -> str:
        """Find a place for one that has rested: its pack now, maybe another than before."""
        return self._place(self.records[trial])

    def out_of_budget(self) -> None:
        """Nothing goes on: what runs counts as stopped."""
        for record in self.mine:
            if record.status == "running":
                self._keep(replace(record, status="stopped", reason="the budget of the search ended"))

    @property
    def mine(self) -> list[TrialRecord]:
        """Trials of this stage."""
        return [each for each in self.records.values() if each.stage == self._stage.name]

    def _start(self, record: TrialRecord) -> dict[str, Any]:
        self._prepare(load_config(self._config, record.values))
        return {
            "id": record.id,
            "pack": self._place(record),
            "values": record.values,
            "depth": record.depth,
            "spent_s": record.seconds,
            "metric": self._config.train.metric,
            "mode": self._mode,
        }

    def _place(self, record: TrialRecord) -> str:
        # by number first: how much is left of a load is not known, and trials that go together end together
        living = Counter(self._pack_of.values())
        pack = min(self._load, key=lambda name: (living[name], self._load[name]))
        self._load[pack] += self._stage.cost(record.values)
        self._pack_of[record.id] = pack
        return pack

    def _keep(self, record: TrialRecord) -> None:
        self.records[record.id] = record
        write(self._store, record)
