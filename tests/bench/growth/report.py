"""What was measured, and what the model makes of it, as one page of tables, and as plots."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Final

from tests.bench.growth.assumed import Cluster, Costs, Design, Load, costs_of
from tests.bench.growth.plots import plot_rates, plot_shares
from tests.bench.growth.simulate import Point, simulate

GPUS: Final = (1, 2, 4, 8, 16, 32, 64)
RATES: Final = (500, 1500, 3000)
DESIGNS: Final[tuple[Design, ...]] = ("ordered", "per rank")
ONE_PREFIX: Final = Cluster()
MANY_PREFIXES: Final = replace(ONE_PREFIX, requests_s=64 * ONE_PREFIX.requests_s)
STORES: Final = {"one prefix": ONE_PREFIX, "many prefixes": MANY_PREFIXES}

Points = dict[tuple[str, Design, float, int], Point]
"""By store, design, images a second of a GPU, and GPUs."""


def report(measured: dict[str, Any], out: Path) -> str:
    """The page; it and the plots go into the folder `out`."""
    costs = costs_of(measured)
    points = every(costs)
    page = "\n".join(
        [measured["machine"], "", *_constants(costs), "", *_streams(measured["streams"]), "", *_points(points)]
    )
    out.mkdir(exist_ok=True)
    (out / "growth.md").write_text(page + "\n")
    plot_rates(points, RATES, GPUS, out / "growth-rates.svg")
    plot_shares(points, RATES[-1], GPUS, out / "growth-shares.svg")
    return page


def every(costs: Costs) -> Points:
    """Both designs at every rate and number of GPUs, with requests that are limited and with some that are not."""
    return {
        (store, design, rate, gpus): simulate(costs, cluster, Load(gpus, rate), design)
        for store, cluster in STORES.items()
        for design in DESIGNS
        for rate in RATES
        for gpus in GPUS
    }


def _constants(costs: Costs) -> list[str]:
    lines = ["| measured | |", "|---|---|"]
    for field in fields(costs):
        value, unit = getattr(costs, field.name), "ms" if field.name.endswith("_s") else ""
        lines.append(f"| {field.name.removesuffix('_s')} | {value * 1000 if unit else value:.3g} {unit} |")
    return lines


def _streams(found: dict[str, Any]) -> list[str]:
    lines = [
        "| tiny blocks | ranks | blocks/s | first block, s | CPU ms each: loop | rank | coordinator | raylet | gcs |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, told in (("per_rank", "one stream per rank"), ("ordered", "one ordered stream")):
        for run in found[name]:
            times = [f"{1000 * run[f'{part}_s']:.2f}" for part in ("loop", "rank", "coordinator", "raylet", "gcs")]
            cells = [told, str(run["world"]), f"{run['blocks_per_s']:.0f}", f"{run['first_s']:.1f}", *times]
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def _points(points: Points) -> list[str]:
    lines = [
        "| images/s of a GPU | GPUs | one ordered stream, images/s | one stream per rank, images/s "
        "| its GET/s | GB/s fetched | blocks/s | the same from one prefix, images/s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for rate in RATES:
        for gpus in GPUS:
            one, each = (points["many prefixes", design, rate, gpus] for design in DESIGNS)
            narrow = points["one prefix", "per rank", rate, gpus]
            load = f"{each.requests_s:,.0f}", f"{each.fetched_s / 1e9:.2g}", f"{each.blocks_s:.0f}"
            cells = [f"{rate:,}", str(gpus), _reached(one), _reached(each), *load, _reached(narrow)]
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def _reached(point: Point) -> str:
    """Images a second, and what limits them if it is not the GPUs."""
    return f"{point.images_s:,.0f}" + (f" ({point.limit})" if point.limit != "GPUs" else "")
