"""Which problem a config and an index's labels are, and whether the settings fit it; without torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final, get_args

import pyarrow.compute as pc

from raycnn.config import Config, load_config
from raycnn.config.base import Metric
from raycnn.config.given import PYTHON
from raycnn.data.manifest import Index, Kind
from raycnn.errors import ConfigError, DataError
from raycnn.training.problems import PROBLEMS, Binary, MultiLabel, OneLabel, Problem, Regression

UNEVEN: Final = 2
"""Times the rows of another from which on classes are uneven."""

_MACRO: Final = "macro_f1"
_AUTO: Final[Mapping[Kind, type[Problem]]] = {"class": OneLabel, "classes": MultiLabel, "number": Regression}
_WORDS: Final[Mapping[Kind, str]] = {"class": "one class each", "classes": "lists of classes", "number": "numbers"}


def problem_of(config: Config, index: Index) -> Problem:
    """What `data.task` asks of the images of an index; auto: what its labels are.

    Raises:
        DataError: the labels cannot be used for it.
    """
    problem = of_labels(config.data.task, index.kind, index.classes)
    if not isinstance(problem, Regression):
        return problem
    values = index.rows("train")["value"].to_pylist()  # summed exactly: in any order, on any machine
    mean = math.fsum(values) / max(len(values), 1)
    spread = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / max(len(values), 1))
    return Regression(mean, spread or 1.0)


def of_labels(task: str, kind: Kind, classes: Sequence[str]) -> Problem:
    """`problem_of` labels of this kind, numbers in their own unit."""
    made = _AUTO[kind] if task == "auto" else PROBLEMS[task]
    if kind not in made.kinds:
        needed = " or ".join(_WORDS[each] for each in made.kinds)
        what = f"the labels are {_WORDS[kind]}, and {task} needs {needed}"
        raise DataError(what, where="data.task", fix="leave data.task out, or give other labels")
    if made is Binary and len(classes) != 2:
        fix = "leave data.task out, or give two classes"
        raise DataError(f"binary needs two classes, and there are {len(classes)}", where="data.task", fix=fix)
    return MultiLabel(len(classes)) if made is MultiLabel else made()


def pinned_metric(problem: Problem, identity: Mapping[str, Any]) -> str:
    """What train.metric is in a run that was started with these settings, unless it is set; `usual_metric` then."""
    usual, pinned = problem.metrics[0], identity.get("train.metric")
    return _MACRO if pinned == _MACRO in problem.metrics else usual


def usual_metric(problem: Problem, index: Index) -> str:
    """What train.metric is unless it is set: the problem's first, or macro_f1 where one class has at least UNEVEN times
    the rows of another, those for the test aside: the same for all folds."""
    if isinstance(problem, OneLabel):
        rows = index.manifest.filter(pc.not_equal(index.manifest["split"], "test"))
        counts = problem.counts(rows, index.classes)
        present = counts[counts > 0] if counts is not None else ()
        if len(present) and max(present) >= UNEVEN * min(present):
            return _MACRO
    return problem.metrics[0]


def settled_by(config: Config, index: Index) -> tuple[Config, Problem]:
    """The config as its index settles it, and the problem.

    Raises:
        DataError: labels that cannot be used for data.task.
        ConfigError: settings of other problems.
    """
    problem = problem_of(config, index)
    if not config.train.folds and not len(index.rows("val")):
        _check_unvalidated(config)
    return settled(config, problem, usual_metric(problem, index)), problem


def _check_unvalidated(config: Config) -> None:
    """ConfigError if there is something that validation rows decide."""
    decided = {"train.patience": config.train.patience, "optim.schedule": config.optim.schedule == "plateau"}
    for where, is_decided in decided.items():
        if is_decided:
            fix = "leave it out, or set data.val_fraction above 0"
            raise ConfigError("there are no validation rows to decide by", where=where, fix=fix)


def chosen_by(config: Config, before: Config) -> list[str]:
    """Lines for the user, where `config`, which was settled, goes by another metric than he may think."""
    if "metric" in before.train.model_fields_set or config.train.metric != _MACRO:
        return []
    return [f"train.metric: {_MACRO}, since one class has at least {UNEVEN} times the rows of another"]


def settled(config: Config, problem: Problem, metric: str) -> Config:
    """The config with this metric, unless train.metric is set.

    Args:
        metric: see `usual_metric`.

    Raises:
        ConfigError: a metric or a loss of other problems.
    """
    if "metric" not in config.train.model_fields_set:
        config = load_config(config, {"train.metric": metric})
    for where, name in (("train.metric", config.train.metric), ("search.metric", config.search.metric)):
        if name and name not in problem.metrics:
            fix = f"use {', '.join(name for name in problem.metrics if name in get_args(Metric))}"
            raise ConfigError(f"{name} is no metric of {problem.task} targets", where=where, fix=fix)
    space = config.search.space.get("loss.name")
    names = [config.loss.name, *((space.choice or space.grid or ()) if space else ())]
    if others := [name for name in names if name not in ("auto", *problem.losses) and not name.startswith(PYTHON)]:
        fix = f"use {', '.join(problem.losses)}"
        raise ConfigError(f"{others[0]} is no loss of {problem.task} targets", where="loss.name", fix=fix)
    of_classes = config.loss.label_smoothing or config.loss.logit_adjustment or config.loss.class_weights != "none"
    if of_classes and any(name.startswith(PYTHON) for name in names):
        fix = "leave label_smoothing, class_weights and logit_adjustment out"
        raise ConfigError("a loss that is given does by itself all that it is to do", where="loss", fix=fix)
    if isinstance(problem, Regression) and of_classes:
        fix = "leave label_smoothing, class_weights and logit_adjustment out"
        raise ConfigError("numbers have no classes", where="loss", fix=fix)
    if config.data.resample != "none" and "class" not in problem.kinds[:1]:
        what = f"{problem.task} targets have no one class to draw by"
        raise ConfigError(what, where="data.resample", fix="leave it out")
    return config
