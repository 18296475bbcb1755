"""What a search found, as the object that `--json` prints, and its best configuration as YAML."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import yaml

from raycnn.config import Config, load_config
from raycnn.searching.answer import Confirmation, best_evaluation, goal
from raycnn.searching.effects import by_depth, by_learning_rate, importance
from raycnn.searching.records import TrialRecord

_YAML_WIDTH = 100


def yaml_of(config: Config, values: Mapping[str, Any]) -> str:
    """The user's config with the chosen values laid over it, as YAML: no defaults, no section search.

    Raises:
        ConfigError: a value that its field refuses.
    """
    tree = load_config(config, dict(values)).model_dump(mode="json", exclude_unset=True, exclude={"search"})
    return yaml.safe_dump(tree, sort_keys=False, default_flow_style=None, width=_YAML_WIDTH, allow_unicode=True)


def overview(records: Sequence[TrialRecord], config: Config) -> dict[str, Any]:
    """What the records say by themselves: {run, metric, trials, by_depth, by_learning_rate, importance}."""
    metric, mode = goal(config)
    searched = [record for record in records if record.stage == "search"]
    return {
        "run": config.run.name,
        "metric": metric,
        "mode": mode,
        "trials": trial_rows(records, config),
        "by_depth": [asdict(level) for level in by_depth(searched, metric, mode)],
        "by_learning_rate": [asdict(level) for level in by_learning_rate(searched, metric, mode)],
        "importance": importance(searched, metric, mode),
    }


def trial_rows(records: Iterable[TrialRecord], config: Config) -> list[dict[str, Any]]:
    """Every trial in the order given.

    {id, config, status, metrics, epochs, seconds, cost, reason, stage, depth, evaluations}: metrics are those of its
    best evaluation (by name, None where not finite; {} without one), epochs and seconds those of its last one, cost
    its seconds at search.price_per_hour or None.
    """
    metric, mode = goal(config)
    price = config.search.price_per_hour
    rows = []
    for record in records:
        best = best_evaluation(record, metric, mode)
        rows.append(
            {
                "id": record.id,
                "config": record.values,
                "status": record.status,
                "metrics": {name: _finite(value) for name, value in best.metrics.items()} if best else {},
                "epochs": record.evaluations[-1].epochs if record.evaluations else 0.0,
                "seconds": record.seconds,
                "cost": None if price is None else record.seconds / 3600 * price,
                "reason": record.reason,
                "stage": record.stage,
                "depth": record.depth,
                "evaluations": len(record.evaluations),
            }
        )
    return rows


def confirm_rows(configurations: Iterable[Confirmation], chosen: Confirmation | None) -> list[dict[str, Any]]:
    """Every confirmed configuration: {config, ids, mean, sd, stderr, num_seeds, seconds, reason, chosen}."""
    return [{"config": (row := asdict(each)).pop("values"), **row, "chosen": each is chosen} for each in configurations]


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else value
