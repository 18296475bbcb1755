"""state.json: what a checkpoint remembers beside weights and optimizer."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from raycnn.config import HeadConfig, TrainConfig
from raycnn.data.plan import Plan
from raycnn.data.transforms import Preprocessing
from raycnn.errors import CheckpointError
from raycnn.storage.base import parse_json
from raycnn.training.calibration import Calibration
from raycnn.training.metrics import metric_mode, should_stop
from raycnn.training.problems import ONE_LABEL, Problem, from_json


@dataclass(frozen=True)
class NetworkFacts:
    """All it takes to rebuild the network and to feed it as it was trained."""

    name: str
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    chunk: int
    head: HeadConfig = field(default=HeadConfig(), repr=False)  # what comes out of the prefix does not depend on it
    problem: Problem = field(default=ONE_LABEL, repr=False)

    @property
    def num_outputs(self) -> int:
        """Width of the network's last layer."""
        return self.problem.num_outputs(self.classes)


@dataclass(frozen=True)
class TrainState:
    """Progress of a run after `step` steps.

    evaluations: [{step, metrics}] in order; bad_rows: key -> reason, of rows that could not be read in training;
    micro_batch: rows a pass, if memory ran out with more.
    """

    network: NetworkFacts
    step: int = 0
    evaluations: tuple[dict[str, Any], ...] = ()
    bad_rows: dict[str, str] = field(default_factory=dict)
    micro_batch: int | None = None
    calibration: Calibration | None = field(default=None, compare=False)  # for the commit of this evaluation alone

    def evaluated(self, metrics: dict[str, Any], calibration: Calibration | None = None) -> TrainState:
        """With the metrics of an evaluation after this step, and what it chose."""
        evaluations = (*self.evaluations, {"step": self.step, "metrics": metrics})
        return replace(self, evaluations=evaluations, calibration=calibration)

    def status(self, config: TrainConfig, plan: Plan) -> str | None:
        """finished, stopped_early, or None while there is more to do."""
        values = [evaluation["metrics"][config.metric] for evaluation in self.evaluations]
        if config.patience and should_stop(values, metric_mode(config.metric), config.patience, config.min_delta):
            return "stopped_early"
        return "finished" if self.step >= plan.steps(config.epochs) else None

    def encode(self) -> bytes:
        """As JSON; equal states give equal bytes."""
        tree = asdict(self)
        network = tree["network"]
        network["preprocessing"] = self.network.preprocessing.as_json()
        network["head"] = self.network.head.model_dump(exclude_defaults=True)
        if not network["head"]:
            del network["head"]  # as states were before there were heads to choose from
        del tree["calibration"], network["problem"]
        if self.network.problem != ONE_LABEL:  # the only one there was at first
            network["problem"] = self.network.problem.as_json()
        if self.micro_batch is None:
            del tree["micro_batch"]
        return json.dumps(tree, sort_keys=True, indent=1).encode()

    @staticmethod
    def decode(data: bytes) -> TrainState:
        """The inverse of encode; CheckpointError for anything else."""
        try:
            tree = parse_json(data)
            network = tree.pop("network")
            facts = NetworkFacts(
                network["name"], tuple(network["classes"]), Preprocessing.from_json(network["preprocessing"]),
                network["chunk"], HeadConfig.model_validate(network.get("head", {})),
                from_json(network.get("problem", ONE_LABEL.as_json())),
            )  # fmt: skip
            state = TrainState(
                facts, tree["step"], tuple(tree["evaluations"]), tree["bad_rows"], tree.get("micro_batch")
            )
            texts = [facts.name, *facts.classes, *state.bad_rows.items()]
            if not isinstance(state.step, int) or not isinstance(facts.chunk, int) or not facts.num_outputs:
                raise ValueError("a number or the classes are missing")
            if not isinstance(state.micro_batch, int | None) or state.micro_batch == 0:
                raise ValueError("a number of rows that is none")
            if not all(isinstance(text, str | tuple) for text in texts):
                raise ValueError("a name that is no text")
            return state
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"not a training state: {error}", where="state.json") from None
