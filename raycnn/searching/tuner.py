"""Ray Tune runs the trials of a stage: it asks the board what comes next, and the scheduler who goes on."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from typing import Any, Final

from ray import tune
from ray.tune.callback import Callback
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher

from raycnn.scratch import scratch
from raycnn.searching.board import Board
from raycnn.searching.halving import Halving
from raycnn.searching.trial import Trial
from raycnn.training.metrics import Mode

TRIAL_CPUS: Final = 0.001
"""Ray CPUs of a trial's actor, which only waits."""

_ENVIRONMENT: Final = {
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_AUTO_CALLBACK_SYNCER": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "86400",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
}


def run_stage(
    board: Board, scheduler: TrialScheduler, mode: Mode, concurrent: int, leave: Callable[[], bool],
    news: Callable[[], None],
) -> None:  # fmt: skip
    """Run a stage's trials until all have ended, or `leave` says so.

    Args:
        board: where trials come from and results go.
        scheduler: who goes on.
        mode: of the objective.
        concurrent: trials at once.
        leave: whether to end now; asked several times a second.
        news: called after each result.

    Raises:
        RaycnnError: a pack cannot go on.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if isinstance(scheduler, Halving):
        scheduler.places = board
    with scratch() as folder:
        tuner = tune.Tuner(
            tune.with_resources(Trial, {"CPU": TRIAL_CPUS}),
            tune_config=tune.TuneConfig(
                search_alg=Suggestions(board, mode, scheduler), scheduler=scheduler, num_samples=-1,
                max_concurrent_trials=concurrent, reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                name="search", storage_path=folder, verbose=0, stop=_Leaving(board, leave),
                callbacks=[Notes(board, news)], failure_config=tune.FailureConfig(max_failures=0),
            ),
        )  # fmt: skip
        tuner.fit()
    if board.fatal:
        raise board.fatal


class _Unsaved:
    """Part of Tune's snapshots by name alone: the search is rebuilt from our own records."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class Suggestions(_Unsaved, Searcher):
    """The board's next trial."""

    def __init__(self, board: Board, mode: Mode, scheduler: TrialScheduler) -> None:
        super().__init__(metric="objective", mode=mode)
        self._board, self._halving = board, scheduler if isinstance(scheduler, Halving) else None

    def set_max_concurrency(self, max_concurrent: int) -> bool:
        """Whether places are counted here: Tune would give none to a new trial while others wait at a rung."""
        if self._halving is not None:
            self._halving.concurrent = max_concurrent
        return self._halving is not None

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        """Its config, None while there is no place for it, or that there are no more."""
        if self._halving is not None and not self._halving.has_room():
            return None
        return self._board.next() or Searcher.FINISHED  # type: ignore[return-value]

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """The board learns of it through `Notes`."""


class Notes(_Unsaved, Callback):
    """Tells the board what Tune hears and decides."""

    def __init__(self, board: Board, news: Callable[[], None]) -> None:
        self._board, self._news = board, news

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """One evaluation."""
        self._board.reported(trial.config["id"], trial.config["values"], result["outcome"])
        # should it be paused, it goes on with the seconds that it has cost
        trial.config["spent_s"] = self._board.records[trial.config["id"]].seconds
        self._news()

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """It ended by itself, or the scheduler stopped it."""
        import ray

        with contextlib.suppress(ValueError):  # the pack died
            ray.get_actor(trial.config["pack"]).leave.remote(trial.config["id"])
        evaluations = len(self._board.records[trial.config["id"]].evaluations)
        self._board.ended(trial.config["id"], f"stopped by the scheduler after evaluation {evaluations}")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Its actor failed."""
        self._board.ended(trial.config["id"], "its actor failed; --verbose shows why", failed=True)


class _Leaving(_Unsaved, tune.Stopper):
    def __init__(self, board: Board, leave: Callable[[], bool]) -> None:
        self._board, self._leave = board, leave

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self._board.fatal is not None or self._leave()
