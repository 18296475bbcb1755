"""Which learning rate: what a range test says, as numbers and as a picture."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
from collections.abc import Callable
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from raycnn.config import Config, identity_hash, load_config
from raycnn.data.manifest import Index, write_index
from raycnn.data.plan import plan_of
from raycnn.errors import Preempted, RaycnnError
from raycnn.storage import Store
from raycnn.storage.lease import read_lease
from raycnn.training.asked import settled_by
from raycnn.training.beforehand import refuse_unusable
from raycnn.training.fit import asked_to_leave
from raycnn.training.groups import run_groups
from raycnn.training.probe import Probe, smoothed
from raycnn.training.run import from_elsewhere, hold, read_run
from raycnn.training.setup import facts_of
from raycnn.training.start import first_commit

FOLDER: Final = "lr-find"
_ONWARD: Final = 10
_FALL: Final = 0.02

Floats = npt.NDArray[np.float64]
Show = Callable[[dict[str, Any], list[str]], None]


def lr_find(config: Config, store: Store, index: Index, show: Show) -> dict[str, Any]:
    """See verbs.lr_find. Needs an initialised Ray; writes below lr-find/ of the run's folder alone.

    Raises:
        RaycnnError: as the test ends, or with a loss that runs away at once.
    """
    outcome = _run(config, store, index, show)
    if outcome["status"] == "preempted":
        raise Preempted("the range test was interrupted", where=config.run.name, fix="run it again")
    points = outcome["curve"]
    if len(points) < 2 * _ONWARD:
        fix = "lower lr_find.low"
        raise RaycnnError(f"the loss ran away after {len(points)} steps", where="lr_find", fix=fix)
    lrs, smooth = np.array([lr for lr, _ in points]), np.array(smoothed([loss for _, loss in points]))
    found: dict[str, Any] = {"run": config.run.name, "valley": valley(lrs, smooth), "steep": steep(lrs, smooth)}
    rows = zip(points, smooth.tolist(), strict=True)
    found["curve"] = [{"lr": lr, "loss": loss, "smoothed": mean} for (lr, loss), mean in rows]
    picture = draw(found)
    if picture:
        store.put(f"{FOLDER}/curve.png", picture)
    store.put(f"{FOLDER}/curve.json", json.dumps(found, indent=1).encode())
    found["plot"] = f"{store.uri}/{FOLDER}/curve.png" if picture else None
    return found | {"seconds": {phase: round(value, 3) for phase, value in outcome["seconds"].items()}}


def steep(lrs: Floats, smooth: Floats) -> float | None:
    """The learning rate at which the loss falls fastest over its logarithm; None where it does not fall."""
    slopes = np.gradient(smooth[_ONWARD:], np.log(lrs[_ONWARD:]))
    return float(lrs[_ONWARD:][slopes.argmin()]) if _falls(smooth) else None


def valley(lrs: Floats, smooth: Floats) -> float | None:
    """The middle of the longest fall, as fastai's `valley`; None where the loss does not fall.

    The longest fall has the end and the length of the longest decreasing subsequence of the losses.
    """
    longest = [1] * len(smooth)
    for later in range(len(smooth)):
        lower = [longest[earlier] for earlier in range(later) if smooth[earlier] > smooth[later]]
        longest[later] = 1 + max(lower, default=0)
    end = int(np.argmax(longest))
    return float(lrs[end - longest[end] // 2]) if _falls(smooth) else None


def draw(found: dict[str, Any]) -> bytes | None:
    """A PNG: the loss over the learning rate, with both suggestions; None without matplotlib."""
    if importlib.util.find_spec("matplotlib") is None:
        return None
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.add_subplot()
    lrs, losses, smooth = ([point[name] for point in found["curve"]] for name in ("lr", "loss", "smoothed"))
    axes.plot(lrs, losses, linewidth=0.8, alpha=0.4, color="tab:blue")
    axes.plot(lrs, smooth, linewidth=2, color="tab:blue")
    for name, colour in (("valley", "tab:orange"), ("steep", "tab:green")):
        if found[name] is not None:
            axes.axvline(found[name], linestyle="--", color=colour, label=f"{name}: {found[name]:.2g}")
            axes.legend()
    top = max(smooth[0], min(smooth)) * 1.3
    axes.set(xscale="log", xlabel="optim.lr", ylabel="training loss", title=found["run"], ylim=(0.9 * min(smooth), top))
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=150)
    return stream.getvalue()


def _falls(smooth: Floats) -> bool:
    return bool(smooth[_ONWARD:].min() < (1 - _FALL) * smooth[:_ONWARD].min())


def _run(config: Config, run: Store, index: Index, show: Show) -> dict[str, Any]:
    """Go through the steps in a folder of their own, of which nothing stays."""
    (config, problem), place = settled_by(config, index), run.child(FOLDER)
    epochs = config.lr_find.steps / plan_of(config, index.rows("train")).steps_per_epoch
    once = {"train.log_every": 1, "train.patience": None, "train.reuse": "none", "train.ema": None}
    settings = load_config(config, {"run.storage": place.uri, "train.epochs": epochs, **once, **from_elsewhere(config)})
    name = hashlib.sha256(f"{identity_hash(settings)} {index.hash}".encode()).hexdigest()[:16]
    settings, folder = load_config(settings, {"run.name": name}), place.child(name)
    facts = facts_of(config, index.classes, problem)
    refuse_unusable(config, facts, index)
    write_index(index, place)
    with hold(folder) as lease, asked_to_leave() as leaving:
        record = read_lease(folder)
        # with the run's own storage, for run:NAME
        first_commit(config, folder, record, facts, lambda line: show({}, [line]), read_run(run), index)
        try:
            return run_groups(settings, folder, index.hash, lease, leaving, show, Probe)
        finally:
            folder.delete([entry.key for entry in folder.list("") if not entry.key.startswith("lease")])
            place.delete([entry.key for entry in place.list("index/")])
