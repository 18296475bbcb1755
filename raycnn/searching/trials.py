"""The trials of a search from the driver's side, and the best few again under other seeds."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import ray

from raycnn.cluster import resources
from raycnn.config import Config, identity, load_config
from raycnn.data.folds import as_fold, fold_of
from raycnn.data.keyed import derive_seed
from raycnn.data.manifest import Index
from raycnn.data.plan import plan_of
from raycnn.errors import NoProgressError, Preempted
from raycnn.searching import records
from raycnn.searching.answer import best_evaluation, goal, ranking
from raycnn.searching.board import Board, Stage, starting_order
from raycnn.searching.budget import Budget
from raycnn.searching.costs import CutCost, Uses, choose, kept_bytes, merged
from raycnn.searching.crew import crew_of, fit_memory, size_crew, take_turns
from raycnn.searching.pack import PackLostError
from raycnn.searching.records import TrialRecord
from raycnn.searching.sampler import Sampler
from raycnn.searching.schedulers import build
from raycnn.searching.settings import pin
from raycnn.searching.shared import write_start
from raycnn.searching.shares import Keeping, PackJob
from raycnn.searching.space import depths, num_trials
from raycnn.searching.tuner import run_stage
from raycnn.storage import Store
from raycnn.storage.lease import Lease
from raycnn.training.asked import problem_of
from raycnn.training.beforehand import refuse_unusable
from raycnn.training.due import evaluation_due
from raycnn.training.fit import asked_to_leave
from raycnn.training.groups import Show
from raycnn.training.metrics import Mode
from raycnn.training.run import create_run, read_run
from raycnn.training.setup import facts_of
from raycnn.training.worker import MAX_ATTEMPTS

T = TypeVar("T")


@dataclass
class Trials:
    """The trials of one search in the run's folder.

    Args:
        config: see `settings_of`.
        store: the run's folder.
        index: the pinned index.
        lease: of the run, held by this process.
        show: called with news.
        first: settings to try before all others.
        kind: what the run is, see `create_run`.
    """

    config: Config
    store: Store
    index: Index
    lease: Lease
    show: Show
    first: list[dict[str, Any]]
    kind: Literal["search", "folds"] = "search"

    def __post_init__(self) -> None:
        self.metric, self.mode = goal(self.config)
        # where trials differ in their rows, the first fold stands for all
        folds = self.config.train.folds and self.config.train.fold is None
        self.typical: dict[str, Any] = {"train.fold": 0} if folds else {}
        first = load_config(self.config, self.typical)
        index = self._index(first)
        self.plan, self.num_validated = plan_of(first, index.rows("train")), len(index.rows("val"))
        self.leaving = threading.Event()
        self.over_budget = False

    def run(self, conclude: Callable[[list[TrialRecord], list[Any]], T]) -> T:
        """Run what is left of the trials.

        Args:
            conclude: called at the end with all records, and the packs, which are still there.

        Returns:
            What `conclude` returned.

        Raises:
            Preempted: asked to leave; everything is kept.
        """
        config = self.config
        with asked_to_leave() as self.leaving:
            fruitless, known = 0, records.read_all(self.store)
            while True:
                try:
                    return self._with_a_crew(num_trials(config.search), conclude)
                except (PackLostError, ray.exceptions.RayActorError) as error:
                    before, known = known, records.read_all(self.store)
                    fruitless = fruitless + 1 if known == before else 0
                    if fruitless == MAX_ATTEMPTS:
                        what = f"packs were lost {MAX_ATTEMPTS} times without a new evaluation: {error}"
                        fix = "run with --verbose; lower search.concurrent or train.global_batch (memory)"
                        raise NoProgressError(what, where=self.store.uri, fix=fix) from None
                    self.show({}, [f"{config.run.name}: a pack was lost; going on from the trials' commits"])

    def _with_a_crew(self, total: int, conclude: Callable[[list[TrialRecord], list[Any]], T]) -> T:
        """Start the packs that the cluster carries now, and run what is left on them."""
        config = self.config
        self.crew = size_crew(config, total, resources())
        self.budget = Budget(config.search, self.store, self.crew.packs * self.crew.ranks)
        job = PackJob(config, self.index.hash, self.lease.owner, self.crew.cpus.task)
        with crew_of(self.crew) as packs:
            self._open()  # while the packs import
            begun = [pack.begin.remote(job) for pack in packs.values()]
            self._start_weights(load_config(config, self.typical))
            ray.get(begun)
            self._weigh(list(packs.values()), total)
            known = records.read_all(self.store)
            sampler = Sampler(config.search, self.metric, self.mode, self.first)
            numbers = starting_order(config.search, total, sampler.values, self._cost)
            stage = Stage("search", numbers, sampler.values, self._cost, all_needed=self.kind == "folds")
            scheduler = build(config.search, self.metric, self.mode, self._num_evaluations(), known)
            known = self._stage(stage, scheduler, packs, known)
            if not self._interrupted():
                known = self._confirm(packs, known)
            self.counters = [ray.get(pack.counters.remote()) for pack in packs.values()]
            if self.over_budget or not self.leaving.is_set():
                return conclude(known, list(packs.values()))
        raise Preempted("everything is kept", where=self.store.uri, fix="the same command continues the search")

    def _open(self) -> None:
        """Write down what the run is, or see that it is the same."""
        config = self.config
        facts = facts_of(config, self.index.classes, problem_of(config, self.index))
        refuse_unusable(config, facts, self.index, read_run(self.store))
        create_run(config, self.store, self.index.hash, self.index.classes, self.kind)
        pin(self.store, config)

    def _weigh(self, packs: list[Any], total: int) -> None:
        """Measure, each pack some of the depths; decide what all keep, and how many trials memory holds."""
        config = self.config
        values = [{**self.typical, "model.unfreeze": depth} for depth in depths(config)]
        parts = [values[number :: len(packs)] for number in range(len(packs))]
        self.costs = merged(
            ray.get([pack.measure.remote(part) for pack, part in zip(packs, parts, strict=True) if part])
        )
        waves = -(-total // self.crew.concurrent)
        epochs = config.train.epochs if config.augment.random else 1.0
        views = round(self.plan.num_rows * self.plan.views * epochs) + self.num_validated
        on_node = -(-len(packs) // len(ray.nodes()))  # type: ignore[no-untyped-call]
        uses = Uses(per_view=waves * on_node * config.train.epochs / epochs, views=views)
        self.choices = choose(self.costs, uses, config.cache.max_bytes, config.search.reuse)
        self.kept_bytes = kept_bytes(self.costs, self.choices, views)
        if "share" not in self.choices.values():
            self.crew = take_turns(self.crew, config)
        self.crew = fit_memory(self.crew, self.costs, resources()["memory"])
        ray.get([pack.keep.remote(Keeping(self.choices, n % on_node, on_node)) for n, pack in enumerate(packs)])
        told = ", ".join(f"{choice} at depth {depth}" for depth, choice in self.choices.items())
        self.show({}, [f"of the frozen prefix: {told}"])

    def _confirm(self, packs: dict[str, Any], known: list[TrialRecord]) -> list[TrialRecord]:
        """Train the best few again; every configuration under the same fresh seeds."""
        num_best, num_seeds = self.config.search.confirm
        best = ranking((r for r in known if r.stage == "search"), self.metric, self.mode)[:num_best]
        seeds = [derive_seed(self.config.train.seed, f"confirm {n}") % 2**31 for n in range(num_seeds)]
        runs = [{**record.values, "train.seed": seed} for seed in seeds for record in best]
        if not runs:
            return known

        def values(number: int, _: Sequence[TrialRecord]) -> dict[str, Any]:
            return runs[number]

        plain = self.config.search.model_copy(update={"scheduler": "none", "searcher": "random"})
        numbers = starting_order(plain, len(runs), values, self._cost)
        stage = Stage("confirm", numbers, values, self._cost)
        scheduler = build(plain, self.metric, self.mode, self._num_evaluations())
        return self._stage(stage, scheduler, packs, known)

    def _stage(
        self, stage: Stage, scheduler: Any, packs: dict[str, Any], known: list[TrialRecord]
    ) -> list[TrialRecord]:
        board = Board(self.store, self.config, self.mode, stage, list(packs), known, self._start_weights)

        def news() -> None:
            self.budget.note()
            self.show({"phase": _progress(board, stage, self.metric, self.mode, self.kind)}, [])

        def leave() -> bool:
            self.over_budget = self.over_budget or self.budget.over()
            if not self._interrupted():
                return False
            for pack in packs.values():
                pack.pause.remote()
            return True

        run_stage(board, scheduler, self.mode, self.crew.concurrent, leave, news)
        self.budget.note()
        self.lease.check()
        if self.over_budget:
            board.out_of_budget()
        return sorted(board.records.values(), key=lambda record: record.id)

    def _interrupted(self) -> bool:
        return self.over_budget or self.leaving.is_set() or self.lease.lost

    def _num_evaluations(self) -> int:
        total = self.plan.steps(self.config.train.epochs)
        every = self.config.train.eval_every
        return sum(evaluation_due(step, every, self.plan, total) for step in range(1, total + 1))

    def seconds_per_image(self, values: dict[str, Any]) -> float:
        """What an image costs a trial that shares nothing, before its suffix."""
        return self.costs.read_s + self._cut(values).prefix_s

    def _cost(self, values: dict[str, Any]) -> float:
        """Relative cost of a trial: a step of its suffix, and taking its input."""
        cut = self._cut(values)
        return cut.suffix_s + cut.take_s

    def _cut(self, values: dict[str, Any]) -> CutCost:
        return self.costs.cuts[self.costs.depths[load_config(self.config, values).model.unfreeze_text]]

    def _index(self, config: Config) -> Index:
        """The index as a trial of this config sees it."""
        return as_fold(self.index, fold_of(identity(config)))

    def _start_weights(self, config: Config) -> None:
        index = self._index(config)
        facts = facts_of(config, index.classes, problem_of(config, index))
        write_start(config, self.store, self.lease.owner, facts, lambda line: self.show({}, [line]), index)


def _progress(board: Board, stage: Stage, metric: str, mode: Mode, kind: str) -> str:
    ended = sum(record.status != "running" for record in board.mine)
    best = ranking(board.mine, metric, mode)
    name, each = ("cross-validation", "fold") if kind == "folds" else (stage.name, "trial")
    text = f"{name}: {ended} of {stage.num_trials} {each}s"
    if best:
        found = best_evaluation(best[0], metric, mode)
        assert found is not None
        text += f"  best {metric} {found.metrics[metric]:.4g} ({each} {best[0].id})"
    return text
