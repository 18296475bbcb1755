"""What is asked of an image (`data.task`), and all that follows from it but the loss; without torch.

A network's outputs are its raw ones, logits_NK or a number in standard deviations; targets are what `targets` gives.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from raycnn.data.manifest import Kind
from raycnn.training.calibration import Calibration, Goal, fit_cut, fit_temperature
from raycnn.training.metrics import NAMES, classification_metrics, details
from raycnn.training.metrics_of_outputs import (
    BINARY,
    MULTI_LABEL,
    NUMBER,
    binary_metrics,
    multi_label_details,
    multi_label_metrics,
    number_metrics,
    two_logits,
)

NONE: Final = Calibration()
Array = npt.NDArray[Any]
Answers = dict[str, list[Any]]


@dataclass(frozen=True)
class OneLabel:
    """Which of the classes: one logit for each.

    Attributes:
        task: its name in data.task.
        kinds: of targets that it can have.
        losses: by loss.name; auto is the first.
        metrics: their names; train.metric is the first unless it is set.
        intervals: metrics whose intervals are told.
        share: the one that is the share of rows that are right.
        decisions: metrics that change with the score from which on a class is there.
        columns: of predictions, by name.
    """

    task: ClassVar[str] = "single-label"
    kinds: ClassVar[tuple[Kind, ...]] = ("class",)
    losses: ClassVar[tuple[str, ...]] = ("cross_entropy", "focal", "mse")
    metrics: ClassVar[tuple[str, ...]] = NAMES
    intervals: ClassVar[tuple[str, ...]] = ("accuracy", "balanced_accuracy", "macro_f1", "auroc")
    share: ClassVar[str | None] = "accuracy"
    decisions: ClassVar[tuple[str, ...]] = ()
    columns: ClassVar[Mapping[str, pa.DataType]] = {"label": pa.string(), "probabilities": pa.list_(pa.float32())}

    def num_outputs(self, classes: Sequence[str]) -> int:
        """Width of the network's last layer."""
        return len(classes)

    def targets(self, table: pa.Table, rows: npt.NDArray[np.int64]) -> Array:
        """Of these rows of a manifest: int64[N], the class."""
        return np.asarray(table["label"].to_numpy()[rows].astype(np.int64))

    def counts(self, table: pa.Table, classes: Sequence[str]) -> Array | None:
        """int64[K], rows of each class."""
        return np.bincount(table["label"].to_numpy(), minlength=len(classes))

    def measure(self, outputs_NK: Array, targets_N: Array) -> dict[str, float | None]:
        """All `metrics`; None where one does not apply."""
        return classification_metrics(outputs_NK, targets_N)

    def details(self, outputs_NK: Array, targets_N: Array, classes: Sequence[str]) -> dict[str, Any]:
        """The metrics class by class, see raycnn.training.metrics.details."""
        return details(outputs_NK, targets_N, classes)

    def right(self, outputs_NK: Array, targets_N: Array) -> npt.NDArray[np.bool_] | None:
        """Which rows are right; None where right and wrong say nothing."""
        return np.asarray(outputs_NK.argmax(1) == targets_N)

    def calibrate(self, outputs_NK: Array, targets_N: Array, goal: Goal) -> Calibration | None:
        """What the validation rows choose; None where there is nothing to choose, or no row, or one is not finite."""
        if not len(outputs_NK) or not np.isfinite(outputs_NK).all():
            return None
        return self._calibrated(outputs_NK, targets_N, goal)

    def _calibrated(self, outputs_NK: Array, targets_N: Array, goal: Goal) -> Calibration | None:
        return Calibration(fit_temperature(outputs_NK, targets_N))

    def measure_calibrated(self, outputs_NK: Array, targets_N: Array, calibration: Calibration) -> dict[str, Any]:
        """Loss and calibration error of the calibrated probabilities, `decisions` of the chosen cuts."""
        scaled = self.measure(calibration.scaled(outputs_NK), targets_N)
        found = {f"{name}_calibrated": scaled[name] for name in ("ece", "loss")}
        if calibration.cuts:
            decided = self.measure(calibration.decided(outputs_NK), targets_N)
            found |= {f"{name}_tuned": decided[name] for name in self.decisions}
        return found

    def probabilities(self, outputs_NK: Array) -> npt.NDArray[np.float64]:
        """Of each class, float64[N, K]."""
        shifted = outputs_NK.astype(np.float64) - outputs_NK.max(1, keepdims=True)
        return np.asarray(np.exp(shifted) / np.exp(shifted).sum(1, keepdims=True))

    def answers(self, outputs_NK: Array, classes: Sequence[str], calibration: Calibration = NONE) -> Answers:
        """The predictions' `columns`, a value for each row."""
        labels = [classes[k] for k in outputs_NK.argmax(1)]
        return {"label": labels, "probabilities": self._listed(outputs_NK, calibration)}

    def _listed(self, outputs_NK: Array, calibration: Calibration) -> list[Any]:
        return list(self.probabilities(calibration.scaled(outputs_NK)).astype(np.float32))

    def named(
        self, outputs_NK: Array, classes: Sequence[str], calibration: Calibration = NONE
    ) -> list[dict[str, float]]:
        """What each row's outputs say, by name: the probability of each class."""
        found_NK = self.probabilities(calibration.scaled(outputs_NK))
        return [dict(zip(classes, row, strict=True)) for row in found_NK.tolist()]

    def as_json(self) -> dict[str, Any]:
        """For `from_json`."""
        return {"task": self.task, **asdict(self)}


@dataclass(frozen=True)
class Binary(OneLabel):
    """Which of two classes: one logit, of the second one; what is told is as of one label of two."""

    task = "binary"
    losses = ("bce", "focal")
    metrics = BINARY
    intervals = ("accuracy", "balanced_accuracy", "f1", "auroc", "average_precision")
    decisions = ("accuracy", "balanced_accuracy", "f1")

    def num_outputs(self, classes: Sequence[str]) -> int:
        """One."""
        return 1

    def targets(self, table: pa.Table, rows: npt.NDArray[np.int64]) -> Array:
        """float32[N, 1], 1 for the second class."""
        return super().targets(table, rows).astype(np.float32)[:, None]

    def counts(self, table: pa.Table, classes: Sequence[str]) -> Array | None:
        """int64[1, 2], rows of each class."""
        return np.bincount(table["label"].to_numpy(), minlength=2)[None]

    def measure(self, outputs_NK: Array, targets_N: Array) -> dict[str, float | None]:
        """All `metrics`."""
        return binary_metrics(outputs_NK, targets_N)

    def details(self, outputs_NK: Array, targets_N: Array, classes: Sequence[str]) -> dict[str, Any]:
        """As of one label."""
        return details(two_logits(outputs_NK), targets_N[:, 0].astype(np.int64), classes)

    def right(self, outputs_NK: Array, targets_N: Array) -> npt.NDArray[np.bool_] | None:
        """Which rows are."""
        return np.asarray((outputs_NK > 0)[:, 0] == (targets_N > 0.5)[:, 0])

    def probabilities(self, outputs_NK: Array) -> npt.NDArray[np.float64]:
        """Of both classes, float64[N, 2]."""
        return super().probabilities(two_logits(outputs_NK))

    def _calibrated(self, outputs_NK: Array, targets_N: Array, goal: Goal) -> Calibration | None:
        yes_N1, scores_N1 = targets_N > 0.5, outputs_NK.astype(np.float64)
        temperature = fit_temperature(two_logits(outputs_NK), yes_N1[:, 0].astype(np.int64))
        return Calibration(temperature, (fit_cut(scores_N1[:, 0], yes_N1[:, 0], goal),))

    def answers(self, outputs_NK: Array, classes: Sequence[str], calibration: Calibration = NONE) -> Answers:
        """As of one label, decided by the cut."""
        labels = [classes[int(yes)] for yes in calibration.decided(outputs_NK)[:, 0] > 0]
        return {"label": labels, "probabilities": self._listed(outputs_NK, calibration)}


@dataclass(frozen=True)
class MultiLabel(OneLabel):
    """Each of the classes or not: one logit for each.

    Args:
        num_classes: K.
    """

    task = "multi-label"
    kinds = ("classes", "class")
    losses = ("bce", "focal")
    metrics = MULTI_LABEL
    intervals = ("map", "micro_f1", "macro_f1", "subset_accuracy")
    decisions = ("micro_f1", "macro_f1", "subset_accuracy")
    share = "subset_accuracy"
    columns: ClassVar[Mapping[str, pa.DataType]] = {
        "labels": pa.list_(pa.string()),
        "probabilities": pa.list_(pa.float32()),
    }

    num_classes: int = 0

    def targets(self, table: pa.Table, rows: npt.NDArray[np.int64]) -> Array:
        """float32[N, K], 1 where the row has the class."""
        targets_NK = np.zeros((len(rows), self.num_classes), np.float32)
        if "labels" not in table.column_names:
            targets_NK[np.arange(len(rows)), table["label"].to_numpy()[rows]] = 1
            return targets_NK
        lists = table["labels"].take(pa.array(rows))
        lengths = pc.list_value_length(lists).to_numpy()
        targets_NK[np.repeat(np.arange(len(rows)), lengths), pc.list_flatten(lists).to_numpy()] = 1
        return targets_NK

    def counts(self, table: pa.Table, classes: Sequence[str]) -> Array | None:
        """int64[K, 2], rows that do not have the class, and those that do."""
        labels = pc.list_flatten(table["labels"]) if "labels" in table.column_names else table["label"]
        have_K = np.bincount(labels.to_numpy(), minlength=self.num_classes)
        return np.stack([len(table) - have_K, have_K], axis=1)

    def measure(self, outputs_NK: Array, targets_N: Array) -> dict[str, float | None]:
        """All `metrics`."""
        return multi_label_metrics(outputs_NK, targets_N)

    def details(self, outputs_NK: Array, targets_N: Array, classes: Sequence[str]) -> dict[str, Any]:
        """The metrics class by class."""
        return multi_label_details(outputs_NK, targets_N, classes)

    def right(self, outputs_NK: Array, targets_N: Array) -> npt.NDArray[np.bool_] | None:
        """Which rows have every answer right."""
        return np.asarray(((outputs_NK > 0) == (targets_N > 0.5)).all(1))

    def probabilities(self, outputs_NK: Array) -> npt.NDArray[np.float64]:
        """Of each class by itself, float64[N, K]."""
        return np.asarray(np.exp(-np.logaddexp(0, -outputs_NK.astype(np.float64))))

    def _calibrated(self, outputs_NK: Array, targets_N: Array, goal: Goal) -> Calibration | None:
        yes_NK, scores_NK = targets_N > 0.5, outputs_NK.astype(np.float64)
        temperature = fit_temperature(two_logits(outputs_NK.reshape(-1, 1)), yes_NK.ravel().astype(np.int64))
        cuts = tuple(fit_cut(scores_NK[:, k], yes_NK[:, k], goal) for k in range(self.num_classes))
        return Calibration(temperature, cuts)

    def answers(self, outputs_NK: Array, classes: Sequence[str], calibration: Calibration = NONE) -> Answers:
        """The classes that a row has by the cuts, and all probabilities."""
        yes_NK = calibration.decided(outputs_NK) > 0
        labels = [[classes[k] for k in np.flatnonzero(row).tolist()] for row in yes_NK]
        return {"labels": labels, "probabilities": self._listed(outputs_NK, calibration)}


@dataclass(frozen=True)
class Regression(OneLabel):
    """A number: one output, in standard deviations from the mean of the training rows' targets.

    Args:
        mean: of the training rows' targets.
        spread: their standard deviation, 1 where there is none.
    """

    task = "regression"
    kinds = ("number",)
    losses = ("mse", "l1", "huber")
    metrics = NUMBER
    intervals = ("rmse", "mae", "r2")
    share = None
    columns: ClassVar[Mapping[str, pa.DataType]] = {"value": pa.float64()}

    mean: float = 0.0
    spread: float = 1.0

    def num_outputs(self, classes: Sequence[str]) -> int:
        """One."""
        return 1

    def targets(self, table: pa.Table, rows: npt.NDArray[np.int64]) -> Array:
        """float64[N], in standard deviations from the mean."""
        return np.asarray((table["value"].to_numpy()[rows] - self.mean) / self.spread)

    def counts(self, table: pa.Table, classes: Sequence[str]) -> Array | None:
        """None."""
        return None

    def measure(self, outputs_NK: Array, targets_N: Array) -> dict[str, float | None]:
        """All `metrics`."""
        return number_metrics(self._values(outputs_NK), targets_N * self.spread + self.mean, self.spread)

    def details(self, outputs_NK: Array, targets_N: Array, classes: Sequence[str]) -> dict[str, Any]:
        """Nothing."""
        return {}

    def right(self, outputs_NK: Array, targets_N: Array) -> npt.NDArray[np.bool_] | None:
        """None."""
        return None

    def _calibrated(self, outputs_NK: Array, targets_N: Array, goal: Goal) -> Calibration | None:
        return None

    def measure_calibrated(self, outputs_NK: Array, targets_N: Array, calibration: Calibration) -> dict[str, Any]:
        """Nothing."""
        return {}

    def answers(self, outputs_NK: Array, classes: Sequence[str], calibration: Calibration = NONE) -> Answers:
        """The number."""
        return {"value": self._values(outputs_NK).tolist()}

    def named(
        self, outputs_NK: Array, classes: Sequence[str], calibration: Calibration = NONE
    ) -> list[dict[str, float]]:
        """{value: the number}."""
        return [{"value": value} for value in self._values(outputs_NK).tolist()]

    def _values(self, outputs_N1: Array) -> npt.NDArray[np.float64]:
        return np.asarray(outputs_N1[:, 0].astype(np.float64) * self.spread + self.mean)


Problem = OneLabel
"""Any of them."""

ONE_LABEL: Final = OneLabel()
PROBLEMS: Final = {problem.task: problem for problem in (OneLabel, Binary, MultiLabel, Regression)}
"""By data.task."""


def from_json(tree: Mapping[str, Any]) -> Problem:
    """The inverse of `as_json`; LookupError, TypeError or ValueError for anything else."""
    rest = dict(tree)
    made = PROBLEMS[rest.pop("task")]
    if not all(isinstance(value, int | float) and math.isfinite(value) for value in rest.values()):
        raise ValueError("not the numbers of a task")
    return made(**rest)
