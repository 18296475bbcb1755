"""What a search varies: which settings, which values; all of it checked before anything starts."""

from __future__ import annotations

import importlib.util
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from pydantic.fields import FieldInfo

from raycnn.config import Config, Distribution, SearchConfig, fields, load_config, operational
from raycnn.errors import ConfigError

Space = Mapping[str, Distribution]
_DRAWN_TRIALS = 16
_SMALLEST_POPULATION = 4
_NUMBER = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+")
_WHERE = "search.space"
_FIXED = ("optim.name", "loss.distill.teacher")


def check(config: Config) -> None:
    """Refuse a search that could not run: unknown or unsearchable settings, values that their fields would not take
    (each laid over the whole config, and every cell of the grid), methods that do not go together.

    Raises:
        ConfigError: the first thing that is wrong.
    """
    search, known = config.search, dict(fields())
    if not search.space:
        fix = "give settings and their values, e.g. {optim.lr: {loguniform: [1e-4, 1e-1]}}"
        raise ConfigError("nothing to search", where=_WHERE, fix=fix)
    for path, distribution in search.space.items():
        _check_path(path, known)
        _check_values(config, path, distribution)
    for cell in cells(search.space):
        _check_cell(config, cell)
    _check_method(search)


def num_trials(search: SearchConfig) -> int:
    """Trials of the search: as many as it says, else one for each cell of the grid, and at least 16 where something is
    drawn.
    """
    size = len(cells(search.space))
    return search.trials or (size if _all_grid(search.space) else max(_DRAWN_TRIALS, size))


def cells(space: Space) -> list[dict[str, Any]]:
    """The grids of the space crossed: one mapping of path to value for each cell, the last path by name changing first.
    One empty cell without grids.
    """
    grids = {path: options(space[path]) for path in sorted(space) if space[path].kind == "grid"}
    return [dict(zip(grids, values, strict=True)) for values in itertools.product(*grids.values())]


def options(distribution: Distribution) -> Sequence[Any]:
    """Every value of a choice, grid, randint or quniform, in order."""
    if distribution.randint is not None:
        return range(*distribution.randint)
    if distribution.quniform is not None:
        first, last = multiples(distribution.quniform)
        return [times(distribution.quniform[2], number) for number in range(first, last + 1)]
    return [_number(value) for value in (distribution.choice or distribution.grid or ())]


def depths(config: Config) -> list[Any]:
    """Every unfreezing depth that trials may have."""
    distribution = config.search.space.get("model.unfreeze")
    if distribution is None:
        return [config.model.model_dump(mode="json")["unfreeze"]]
    return list(options(distribution))


def multiples(quniform: tuple[float, float, float]) -> tuple[int, int]:
    """The first and the last multiple of the step within the bounds, as `ray.tune.quniform` counts them."""
    low, high, step = quniform
    nearest = round(low / step), round(high / step)
    return (
        nearest[0] if math.isclose(low / step, nearest[0]) else math.ceil(low / step),
        nearest[1] if math.isclose(high / step, nearest[1]) else math.floor(high / step),
    )


def times(step: float, number: int) -> int | float:
    """A multiple of a step, whole if the step is."""
    return int(step) * number if float(step).is_integer() else step * number


def contains(space: Space, values: Mapping[str, Any]) -> bool:
    """Whether the values, by dotted path, are a point of the space."""
    return values.keys() == space.keys() and all(_holds(space[path], value) for path, value in values.items())


def _holds(distribution: Distribution, value: Any) -> bool:
    bounds = distribution.loguniform or distribution.uniform
    if bounds is None:
        known = options(distribution)
        return value in known and type(known[known.index(value)]) is type(value)
    return isinstance(value, (int, float)) and bounds[0] <= value <= bounds[1]


def _number(value: Any) -> Any:
    """YAML reads 1e-3 as text."""
    return float(value) if isinstance(value, str) and _NUMBER.fullmatch(value) else value


def _all_grid(space: Space) -> bool:
    return all(distribution.kind == "grid" for distribution in space.values())


def _check_path(path: str, known: dict[str, FieldInfo]) -> None:
    if path not in known:
        near = [name for name in known if name.endswith(f".{path}")] or get_close_matches(path, known, n=1)
        fix = f"did you mean {near[0]}?" if near else "`raycnn search --help` lists all settings"
        raise ConfigError(f"unknown setting {path}", where=_WHERE, fix=fix)
    if why := _why_not(path, known[path]):
        raise ConfigError(f"{path} cannot be searched", where=_WHERE, fix=f"{why}; leave it out of the space")


def _why_not(path: str, info: FieldInfo) -> str | None:
    section = path.split(".")[0]
    if section in ("run", "search", "evaluate", "predict"):
        return "it does not change how a trial trains"
    if operational(path, info) and path != "train.epochs":
        return "it says where, how fast or how often, not what is trained"
    if section == "data" and path != "data.image_size":
        return "all trials share one set of rows"
    if path in ("train.folds", "train.fold"):
        return "raycnn train runs folds"
    return "trials are compared by it" if path in ("train.metric", "train.eval_every") else None


def _check_values(config: Config, path: str, distribution: Distribution) -> None:
    where = f"{_WHERE}.{path}"
    for value in _probes(distribution):
        if _is_conditional(value):
            raise ConfigError(
                "a value that depends on another cannot be searched",
                where=where,
                fix="list plain values, or search each case by itself",
            )
        try:
            load_config(config, {path: value})
        except ConfigError as error:
            raise ConfigError(f"{path} cannot be {value}", where=where, fix=error.fix) from None
    if bounds := distribution.loguniform or distribution.uniform:
        inside = bounds[0] + (bounds[1] - bounds[0]) * 0.381966
        try:
            load_config(config, {path: inside})
        except ConfigError:
            fix = "use randint: [low, high) or quniform: [low, high, step]"
            raise ConfigError(f"{path} takes no fractions", where=where, fix=fix) from None


def _probes(distribution: Distribution) -> Sequence[Any]:
    if bounds := distribution.loguniform or distribution.uniform:
        return bounds
    values = options(distribution)
    return values if distribution.kind in ("choice", "grid") else [*values[:2], values[-1]]


def _is_conditional(value: Any) -> bool:
    if isinstance(value, Mapping):
        return bool(value.keys() & Distribution.model_fields.keys()) or any(map(_is_conditional, value.values()))
    return isinstance(value, (list, tuple)) and any(map(_is_conditional, value))


def _check_cell(config: Config, cell: dict[str, Any]) -> None:
    try:
        load_config(config, cell)
    except ConfigError as error:
        told = ", ".join(f"{path} {value}" for path, value in cell.items())
        raise ConfigError(f"these do not go together: {told}", where=_WHERE, fix=error.fix) from None


def _check_method(search: SearchConfig) -> None:
    if _all_grid(search.space) and search.trials and search.trials > (size := len(cells(search.space))):
        fix = f"at most {size}, or leave it out"
        raise ConfigError(f"the grid has {size} cells for {search.trials} trials", where="search.trials", fix=fix)
    if search.scheduler == "pbt":
        _check_population(search)
    if search.searcher == "tpe" and importlib.util.find_spec("optuna") is None:
        raise ConfigError("tpe needs Optuna", where="search.searcher", fix="pip install 'raycnn[search]'")


def _check_population(search: SearchConfig) -> None:
    fixed = [p for p in search.space if p.split(".")[0] not in ("optim", "loss") or p in _FIXED]
    if fixed:
        fix = "leave it out, or use another scheduler; pbt changes settings in mid-run"
        raise ConfigError(f"{fixed[0]} cannot change in mid-run", where=f"{_WHERE}.{fixed[0]}", fix=fix)
    if num_trials(search) < _SMALLEST_POPULATION:
        fix = f"search.trials: {_SMALLEST_POPULATION} or more"
        raise ConfigError(f"{num_trials(search)} trials are no population", where="search.trials", fix=fix)
    if search.searcher == "tpe":
        fix = "take one of them: pbt changes what tpe would learn from"
        raise ConfigError("tpe and pbt do not go together", where="search.searcher", fix=fix)
