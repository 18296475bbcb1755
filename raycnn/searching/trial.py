"""What Tune sees of a trial: a thin actor that asks the trial's pack for its next evaluation."""

from __future__ import annotations

import contextlib
from typing import Any

import ray
from ray import tune
from ray.train._internal.session import _TrainingResult

from raycnn.errors import RaycnnError, encode_error
from raycnn.searching.pack import PackLostError


class Trial(tune.Trainable):
    """One trial after the other, in an actor that Tune reuses.

    Its config: {id, pack (name of the actor), values, depth, spent_s, metric, mode}. Its results: {evaluation,
    objective, depth, seconds, done} and, for the driver's records, {outcome}. Its checkpoint is a pointer: which
    trial, which step.
    """

    def setup(self, config: dict[str, Any]) -> None:
        """Join the pack."""
        self._source: tuple[str, int] | None = None
        self._step = -1
        self._ticket: int | None = None
        self._settings = config

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Become another trial, or the same one with other settings."""
        self._leave()
        self.setup(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """Go on to the next evaluation."""
        config = self._settings
        try:
            pack: Any = ray.get_actor(config["pack"])
            if self._ticket is None:
                joined = pack.join.remote(config["id"], config["values"], self._source, config["spent_s"])
                self._ticket = ray.get(joined)
            outcome: dict[str, Any] = ray.get(pack.advance.remote(config["id"]))
            return self._result(outcome)
        except (ray.exceptions.RayActorError, ValueError):  # it died, while this waited or before
            return self._result({"fatal": encode_error(PackLostError("a pack died"))})
        except ray.exceptions.RayTaskError as error:
            if not isinstance(error.cause, RaycnnError):
                raise
            return self._result({"error": encode_error(error.cause)})

    def save(self, checkpoint_dir: str | None = None) -> _TrainingResult:
        """A pointer to where this trial stands, without any file: its commits lie in the run's folder.

        Schedulers save what they pause: its pack must not wait for it, nor take it along.
        """
        self._leave()
        place = tune.Checkpoint(f"/{self._settings['id']}:{self._step}")
        return _TrainingResult(checkpoint=place, metrics=dict(self._last_result or {}))

    def restore(self, checkpoint_path: _TrainingResult) -> None:  # type: ignore[override]
        """Go on from where another trial, or this one, stood."""
        assert checkpoint_path.checkpoint is not None
        trial, _, step = checkpoint_path.checkpoint.path.lstrip("/").rpartition(":")
        self._leave()
        self._source = (trial, int(step))

    def cleanup(self) -> None:
        """Leave the pack."""
        self._leave()

    def _leave(self) -> None:
        if self._ticket is not None:
            with contextlib.suppress(ValueError):  # the pack died
                ray.get_actor(self._settings["pack"]).leave.remote(self._settings["id"], self._ticket)
            self._ticket = None

    def _result(self, outcome: dict[str, Any]) -> dict[str, Any]:
        config = self._settings
        self._step = outcome.get("step", self._step)
        metrics = outcome.get("metrics") or {}
        value = metrics.get(config["metric"])
        worst = float("-inf") if config["mode"] == "max" else float("inf")
        ended = bool(outcome.get("status") or outcome.get("error") or outcome.get("fatal"))
        return {
            "evaluation": outcome.get("evaluation", 0),
            "objective": worst if value is None else value,
            "depth": config["depth"],
            "seconds": outcome.get("seconds", 0.0),
            "done": ended,
            "outcome": outcome,
        }
