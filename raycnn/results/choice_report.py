"""What `raycnn choose` found, as text and as a picture."""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Mapping, Sequence
from typing import Any, Final

from raycnn.results.report import table
from raycnn.training.metrics import metric_mode

_NOTE: Final = (
    "A cut's score is that of a linear head on frozen features. It ranks networks, and tells from which stage on\n"
    "features no longer serve these images; it is not what a fine-tune at that depth comes to."
)


def render(told: Mapping[str, Any]) -> str:
    """The cuts with scores and costs, * on the Pareto front of score and time; the networks; what to do; a YAML."""
    title = (
        f"{told['run']}: {len(told['networks'])} networks, {told['rows']} training and validation rows, "
        f"{told['folds']} folds, {told['seconds']:.0f} s"
    )
    lines = [["network", "depth", "would train", "features", told["metric"], "spread", "ms/image", "front"]]
    lines += [_line(cut, _names(told)) for cut in told["cuts"]]
    costs = [["network", "parameters", "MB", "MACs", "ms/image"]]
    for network in told["networks"]:
        macs, size = _short(network["macs"]), f"{network['megabytes']:.1f}"
        costs.append([_name(network, _names(told)), _short(network["parameters"]), size, macs, f"{network['ms']:.2f}"])
    return "\n\n".join([title, table(lines), table(costs), _NOTE, sentence(told), told["yaml"].rstrip()])


def sentence(told: Mapping[str, Any]) -> str:
    """What follows, in one."""
    chosen, metric = told["recommended"], told["metric"]
    own = [cut for cut in told["cuts"] if (cut["network"], cut["weights"]) == (chosen["network"], chosen["weights"])]
    others = [cut for cut in told["cuts"] if cut not in own and cut["score"] is not None]
    sign = 1 if metric_mode(metric) == "max" else -1
    top = max((cut for cut in own if cut["score"] is not None), key=lambda cut: sign * cut["score"], default=None)
    why = "" if top is None else f" ({metric} {top['score']:.3f} at depth {top['depth']})"
    better = [cut for cut in others if top and sign * cut["score"] > sign * top["score"]]
    if better:
        why += f", as good within a standard error as {_short_name(better[0]['network'])} and faster"
    depths = ", ".join(map(str, chosen["depths"]))
    low, high = chosen["epoch_seconds"]
    return (
        f"Fine-tune {chosen['network']}{why}: with {told['training_rows']} training rows search the depths {depths}; "
        f"an epoch of them takes about {low:.2g} to {high:.2g} s here."
    )


def draw(told: Mapping[str, Any]) -> bytes | None:
    """A PNG: score over time for every cut, a line for each network, the front marked; None without matplotlib."""
    if importlib.util.find_spec("matplotlib") is None:
        return None
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes, names = figure.add_subplot(), _names(told)
    for network in told["networks"]:
        name = _name(network, names)
        own = [cut for cut in told["cuts"] if _name(cut, names) == name and cut["score"] is not None]
        spreads = [cut["spread"] or 0 for cut in own]
        times, scores = [cut["ms"] for cut in own], [cut["score"] for cut in own]
        (line,) = axes.plot(times, scores, marker="o", markersize=3, label=name)
        axes.errorbar(times, scores, spreads, linestyle="none", color=line.get_color(), alpha=0.5)
        for cut in own:
            axes.annotate(str(cut["depth"]), (cut["ms"], cut["score"]), textcoords="offset points", xytext=(3, 3))
    ahead = [cut for cut in told["cuts"] if cut["front"]]
    places = [cut["ms"] for cut in ahead], [cut["score"] for cut in ahead]
    axes.scatter(*places, s=90, facecolors="none", edgecolors="black", label="front")
    axes.set(xlabel="ms an image to the cut (numbers: depth)", ylabel=told["metric"], title=told["run"])
    axes.legend(fontsize=8)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=150)
    return stream.getvalue()


def _line(cut: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    score, spread = (f"{cut[name]:.3f}" if cut[name] is not None else "-" for name in ("score", "spread"))
    front = "*" if cut["front"] else ""
    sizes = [str(cut["depth"]), _short(cut["trainable"]), str(cut["features"])]
    return [_name(cut, names), *sizes, score, spread, f"{cut['ms']:.2f}", front]


def _names(told: Mapping[str, Any]) -> list[str]:
    return [network["network"] for network in told["networks"]]


def _name(cut: Mapping[str, Any], names: Sequence[str]) -> str:
    """The network, with its weights where others have the same name."""
    short = _short_name(cut["network"])
    return short if names.count(cut["network"]) == 1 else f"{short} {cut['weights'].rpartition('/')[2]}"


def _short_name(name: str) -> str:
    return name.partition("/")[2]


def _short(count: float) -> str:
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return str(count)
