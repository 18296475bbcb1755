"""What `raycnn shift` found, as text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from raycnn.results.report import printable, table

_SHOWN: Final = 20
_TITLES: Final = {
    "target": "training rows, target",
    "halves": "halves of training rows",
    "val": "training rows, validation",
    "recalibrated": "target, recalibrated",
    "recalibrated_halves": "halves, recalibrated",
    "same_shares": "target, same class shares",
}


def render(told: Mapping[str, Any]) -> str:
    """The distances, the classes' shares if they moved, the images that are furthest off, and the advice."""
    lines = [["between", "rows", "Frechet", "AUROC", "A-distance"]]
    for name, title in _TITLES.items():
        if each := told["distances"][name]:
            lines.append(
                [
                    title,
                    str(each["rows"]),
                    f"{each['frechet']:.3g}",
                    f"{each['auroc']:.3f}",
                    f"{each['a_distance']:.2f}",
                ]
            )
    head = f"{told['run']}: {told['rows']} images of {told['target']}, features of {told['network']}, {told['weights']}"
    parts = [printable(head), table(lines)]
    if told["shares"]:
        rows = [[printable(name), f"{ours:.3f}", f"{new:.3f}"] for name, (ours, new) in told["shares"].items()]
        parts.append(table([["class", "training rows", "target, estimated"], *rows[:_SHOWN]]))
    if told["drifted"]:
        listed = [[printable(each["key"]), f"{each['logit']:.2f}"] for each in told["drifted"]]
        parts.append(table([["furthest from the training rows", "logit"], *listed]))
    return "\n\n".join([*parts, told["advice"]])
