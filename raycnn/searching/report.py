"""A search's answer as plain text for people."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from textwrap import fill
from typing import Any

from raycnn.results.report import columns, metrics_table, number, printable
from raycnn.results.report import table as aligned

_WIDTH = 100
_MAX_TRIALS = 20
_MAX_PARAMETERS = 10


def render(result: Mapping[str, Any]) -> str:
    """The result as text of at most 100 columns, without a final newline; only the YAML and addresses may be wider.

    Args:
        result: `overview` with {best: {id, config, metrics, checkpoint, yaml} or None, prefix: {passes,
            trial_epochs, cuts, cached_bytes, seconds, seconds_saved}, confirm: `confirm_rows` or None, test:
            {metrics} or None, against_former: a `Paired` as dict or None, files: addresses by title, seconds}.
            A part that is missing or None is left out.
    """
    metric, best = result["metric"], result.get("best")
    searched = [row for row in result["trials"] if row["stage"] == "search"]
    parts = [
        _head(result, searched),
        _trials(searched, metric, result["mode"]),
        _effects(result),
        _ended(searched),
        _confirm(result.get("confirm") or [], metric),
        _test(result.get("test")),
        _against_former(result.get("against_former")),
        _prefix(result.get("prefix")),
        _files(result.get("files") or {}),
        "the best configuration\n\n" + best["yaml"].rstrip() if best and best.get("yaml") else "",
    ]
    return "\n\n".join(filter(None, parts))


def _head(result: Mapping[str, Any], searched: Sequence[Mapping[str, Any]]) -> str:
    counts = Counter(row["status"] for row in searched)
    told = ", ".join(f"{count} {status}" for status, count in counts.items())
    costs = [row["cost"] for row in result["trials"] if row["cost"] is not None]
    cost = f"; the trials alone cost {sum(costs):.2f}" if costs else ""
    count = "1 trial" if len(searched) == 1 else f"{len(searched)} trials"
    line = f"{result['run']}: {count} in {result['seconds']:.0f} s" + (f" ({told})" if told else "") + cost
    best, metric = result.get("best"), result["metric"]
    if not best:
        return _wrapped(line) + f"\nno trial has a finite {metric}"
    name = f"trial {best['id']}, " if "id" in best else ""
    values = ", ".join(f"{path} {_text(value)}" for path, value in best["config"].items())
    told = f"best: {name}{metric} {number(best['metrics'].get(metric))} on the validation rows: {values}"
    return "\n".join(_wrapped(each) for each in (line, told))


def _trials(searched: Sequence[Mapping[str, Any]], metric: str, mode: str) -> str:
    if not searched:
        return ""
    sign = -1 if mode == "max" else 1

    def place(row: Mapping[str, Any]) -> tuple[bool, float, float, str]:
        value = row["metrics"].get(metric)
        return row["status"] == "failed", math.inf if value is None else sign * value, row["seconds"], row["id"]

    shown = sorted(searched, key=place)[:_MAX_TRIALS]
    priced = any(row["cost"] is not None for row in shown)

    def lines(paths: Sequence[str]) -> list[list[str]]:
        head = ["trial", *_titles(paths), metric, "epochs", "seconds", *(["cost"] if priced else []), ""]
        return [head] + [
            [
                row["id"],
                *(_text(row["config"].get(path)) for path in paths),
                number(row["metrics"].get(metric)),
                f"{row['epochs']:.4g}",
                f"{row['seconds']:.1f}",
                *([number(row["cost"])] if priced else []),
                "" if row["status"] == "finished" else row["status"],
            ]
            for row in shown
        ]

    note = f"\n(the best {len(shown)} of {len(searched)} trials)" if len(shown) < len(searched) else ""
    return _fitting(lines, shown) + note


def _effects(result: Mapping[str, Any]) -> str:
    tables = []
    for key, title in (("by_depth", "depth"), ("by_learning_rate", "learning rate")):
        levels = result.get(key) or []
        lines = [
            [
                each["value"],
                str(each["num_trials"]),
                number(each["best"]),
                number(each["median"]),
                f"{each['seconds']:.1f}",
            ]
            for each in levels
        ]
        if len(levels) > 1:
            tables.append(_table([[title, "trials", "best", "median", "seconds"], *lines]))
    shares = list((result.get("importance") or {}).items())[:_MAX_PARAMETERS]
    if shares:
        tables.append(
            _table([["what mattered", "explains alone"], *([path, f"{share:.0%}"] for path, share in shares)])
        )
    return _side_by_side(tables)


def _ended(rows: Iterable[Mapping[str, Any]]) -> str:
    groups: dict[tuple[str, float, str], list[str]] = {}
    for row in rows:
        if row["status"] != "finished":
            groups.setdefault((row["status"], row["epochs"], row["reason"] or "no reason known"), []).append(row["id"])
    order = sorted(groups, key=lambda key: (key[0] != "stopped", key[1:]))
    lines = []
    for status, epochs, reason in order:
        ids = ", ".join(groups[status, epochs, reason])
        unit = "epoch" if epochs == 1 else "epochs"
        lines.append(f"{status} after {epochs:.4g} {unit}, {reason}: {ids}")
    return "\n".join(_wrapped(line) for line in lines)


def _confirm(rows: Sequence[Mapping[str, Any]], metric: str) -> str:
    if not rows:
        return ""

    def lines(paths: Sequence[str]) -> list[list[str]]:
        head = ["trained again", *_titles(paths), metric, "± sd", "seeds", "seconds"]
        return [head] + [
            [
                "chosen" if row["chosen"] else "out" if row["reason"] else "",
                *(_text(row["config"].get(path)) for path in paths),
                number(row["mean"]),
                number(row["sd"]),
                str(row["num_seeds"]),
                f"{row['seconds']:.1f}",
            ]
            for row in rows
        ]

    out = [f"(out: {row['reason']})" for row in rows if row["reason"]]
    notes = (_wrapped(line) for line in out)
    return "\n".join([_fitting(lines, rows), *notes])


def _test(test: Mapping[str, Any] | None) -> str:
    return "the chosen one on the test split\n" + metrics_table(test["metrics"], {}) if test else ""


def _against_former(pair: Mapping[str, Any] | None) -> str:
    if not pair:
        return ""
    interval = pair["ci95"]
    span = f"95 % interval {interval[0]:+.3f} to {interval[1]:+.3f}, " if interval else ""
    told = (
        f"against the former best: {pair['verdict']}; accuracy {pair['difference']:+.3f} ({span}McNemar "
        f"p {pair['p_value']:.2g}), {pair['gained']} rows gained and {pair['lost']} lost of {pair['num_rows']}"
    )
    return _wrapped(told)


def _prefix(prefix: Mapping[str, Any] | None) -> str:
    if not prefix:
        return ""
    told = (
        f"shared: {prefix['passes']:.4g} passes over the images for {prefix['trial_epochs']:.4g} epochs of trials, "
        f"{prefix['seconds']:.1f} s"
    )
    if prefix.get("seconds_saved") is not None:
        told += f", {prefix['seconds_saved']:.1f} s saved"
    if prefix.get("cached_bytes"):
        told += f"; {prefix['cached_bytes'] / 1e6:.1f} MB of activations kept"
    cuts = prefix.get("cuts") or []
    lines = [["depth", "reuse", "KB per image", "ms per image"]] + [
        [
            str(cut["depth"]),
            str(cut["choice"]),
            *(
                "-" if (value := cut.get(key)) is None else f"{value * scale:.2f}"
                for key, scale in (("bytes_per_image", 1e-3), ("seconds_per_image", 1e3))
            ),
        ]
        for cut in cuts
    ]
    return "\n".join([_wrapped(told), *([_table(lines)] if cuts else [])])


def _files(files: Mapping[str, str]) -> str:
    width = max(map(len, files), default=0)
    return "\n".join(printable(f"{title:<{width}}  {where}") for title, where in files.items())


def _fitting(lines: Callable[[Sequence[str]], list[list[str]]], rows: Iterable[Mapping[str, Any]]) -> str:
    """The table of `lines` with as many of the rows' parameters as fit beside each other."""
    paths = list(dict.fromkeys(path for row in rows for path in row["config"]))
    for kept in range(len(paths), -1, -1):
        text = _table(lines(paths[:kept]))
        if max(map(columns, text.split("\n"))) <= _WIDTH:
            break
    left_out = ", ".join(paths[kept:])
    return text + ("\n" + _wrapped(f"(no room for {left_out})") if left_out else "")


def _side_by_side(tables: Sequence[str]) -> str:
    """The tables beside each other as far as they fit, in as many bands as it takes."""
    bands: list[list[str]] = []
    for each in (text.split("\n") for text in tables):
        width = max(map(columns, bands[-1])) + 4 if bands else _WIDTH
        if width + max(map(columns, each)) > _WIDTH:
            bands.append(each)
            continue
        band = bands[-1] + [""] * (len(each) - len(bands[-1]))
        added = each + [""] * (len(band) - len(each))
        bands[-1] = [
            (left + " " * (width - columns(left)) + right).rstrip() for left, right in zip(band, added, strict=True)
        ]
    return "\n\n".join("\n".join(band) for band in bands)


def _table(lines: Sequence[Sequence[str]]) -> str:
    return aligned([[printable(cell) for cell in line] for line in lines])


def _wrapped(text: str) -> str:
    return fill(printable(text), _WIDTH, subsequent_indent="  ")


def _titles(paths: Sequence[str]) -> list[str]:
    """Paths by their last name, where that is enough to tell them apart."""
    last = Counter(path.rsplit(".", 1)[-1] for path in paths)
    return [name if last[name := path.rsplit(".", 1)[-1]] == 1 else path for path in paths]


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    return value if isinstance(value, str) else "-" if value is None else json.dumps(value)
