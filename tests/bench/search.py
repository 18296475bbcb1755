"""The search against the same trials by plain Ray, one after the other, and against the sum of its own parts."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raycnn.cluster import available_cpus
from raycnn.config import Depth
from raycnn.searching import records
from raycnn.storage import open_store
from tests.bench.case import DEPTHS, LEARNING_RATES, prepare_case, tree_of
from tests.bench.command import Row, command_of, config_of, plain_environment, timed, watched
from tests.bench.pictures import write_tree

PART = (3e-4,)
"""The learning rates of plain Ray, which takes half an hour, unless all are asked for."""

Losses = dict[tuple[float, Depth], float]


@dataclass(frozen=True)
class Side:
    """One way to run the search.

    Args:
        seconds: for all trials.
        accuracy: the best on the validation rows.
        losses: on the validation rows at the end, by learning rate and depth; a stopped trial has none.
        note: how the seconds came about.
        parts: what they are the sum of.
    """

    seconds: float
    accuracy: float
    losses: Losses
    note: str = ""
    parts: str = ""


def search(root: Path, *, full: bool = False, check: bool = False) -> list[Row]:
    """Rows of the search; the sides run one after the other.

    Args:
        root: an empty folder.
        full: every trial of plain Ray too, instead of one learning rate and the rest by proportion.
        check: also whether the losses are those of plain training, bit by bit, with one thread.
    """
    case, slow = prepare_case(root), LEARNING_RATES if full else PART
    ours = searched(root, "grid", scheduler="none")
    asha = searched(root, "asha", scheduler="asha")
    alone, ray = unshared(case), plain_ray(case, slow)
    parts = {"torch as it comes": ideal(case), "raycnn's settings of torch": ideal(case, own=True)}
    rows = [
        against("the search, s", ours, "plain Ray", ray, ">= 8"),
        against("the same with ASHA, s", asha, "plain Ray", ray, ">= 10, accuracy not lower"),
        against("the search, s", ours, "one after the other, nothing shared", alone, ">= 3"),
        *(
            (f"the search against its parts, {how}, s", f"{ours.seconds:.0f}", f"{side.seconds:.0f}: {side.parts}",
             f"{ours.seconds / side.seconds:.2f}", "<= 1.3")
            for how, side in parts.items()
        ),
        *first_steps(root),
        *waiting(root),
    ]  # fmt: skip
    if check:
        rows += [
            equal("the ideal", ours, ideal(case, threads=1, own=True)),
            equal("one alone", ours, unshared(case, slow, threads=1, own=True)),
        ]
    return rows


def against(name: str, ours: Side, what: str, theirs: Side, goal: str) -> Row:
    mine = f"{ours.seconds:.0f}, best accuracy {ours.accuracy:.3f}"
    other = f"{what} {theirs.seconds:.0f}{theirs.note}, best accuracy {theirs.accuracy:.3f}"
    return name, mine, other, f"{theirs.seconds / ours.seconds:.1f}", goal


def equal(what: str, ours: Side, theirs: Side) -> Row:
    """How many trials have the same loss."""
    common = ours.losses.keys() & theirs.losses.keys()
    same = sum(ours.losses[trial] == theirs.losses[trial] for trial in common)
    return f"final validation losses equal to the last bit, {what}", f"{same}", f"of {len(common)}", "-", "all"


def searched(root: Path, storage: str, **settings: Any) -> Side:
    """`raycnn search` from the command to its end: Ray's start, the index, every trial."""
    tree = tree_of(root, storage, **settings)
    _, seconds = timed("search", tree, root)
    trials = records.read_all(open_store(tree["run"]["storage"]).child(tree["run"]["name"]))
    accuracies = [value for trial in trials for value in trial.values_of("accuracy") if value is not None]
    losses: Losses = {}
    for trial in trials:
        loss = trial.values_of("loss")[-1] if trial.status == "finished" else None
        if loss is not None:
            losses[trial.values["optim.lr"], trial.values["model.unfreeze"]] = loss
    return Side(seconds, max(accuracies), losses)


def plain_ray(case: Path, lrs: tuple[float, ...]) -> Side:
    """Tune over TorchTrainer."""
    start = time.perf_counter()
    found = told("plain_ray", str(case), lrs=lrs)
    seconds, trials = time.perf_counter() - start, found["trials"]
    if len(lrs) < len(LEARNING_RATES):
        # the last of a few trials run side by side has the machine to itself, which is in plain Ray's favour
        busy = sum(trial["seconds"] for trial in trials) / found["concurrent"]
        seconds += busy * len(LEARNING_RATES) / len(lrs) - found["fit"]
    return side(seconds, trials, lrs)


def unshared(
    case: Path, lrs: tuple[float, ...] = LEARNING_RATES, threads: int | None = None, *, own: bool = False
) -> Side:
    """The same trials one after the other in one warm process; decoded once, views and prefix at each step."""
    found = told("plain_torch", "unshared", str(case), lrs=lrs, threads=threads or available_cpus(), own=int(own))
    seconds = found["reading"] + sum(trial["seconds"] for trial in found["trials"]) + found["test"]
    return side(seconds, found["trials"], lrs)


def ideal(case: Path, threads: int | None = None, *, own: bool = False) -> Side:
    """All in memory without Ray: the prefix once, each suffix on what came out of it."""
    threads = threads or available_cpus()
    found = told("plain_torch", "cached", str(case), lrs=LEARNING_RATES, threads=threads, own=int(own))
    parts = {"reading": found["reading"], "prefix": found["prefix"]}
    for depth in reversed(DEPTHS):
        parts[f"depth {depth}"] = sum(trial["seconds"] for trial in found["trials"] if trial["depth"] == depth)
    parts["test split"] = found["test"]
    text = ", ".join(f"{name} {seconds:.1f}" for name, seconds in parts.items())
    return side(sum(parts.values()), found["trials"], LEARNING_RATES, text)


def side(seconds: float, trials: list[dict[str, Any]], lrs: tuple[float, ...], parts: str = "") -> Side:
    total = len(LEARNING_RATES) * len(DEPTHS)
    note = "" if len(lrs) == len(LEARNING_RATES) else f" (scaled from {len(trials)} of {total} trials)"
    losses = {(trial["lr"], trial["depth"]): trial["loss"] for trial in trials}
    return Side(seconds, max(trial["accuracy"] for trial in trials), losses, note, parts)


def told(module: str, *arguments: str, lrs: tuple[float, ...], **options: Any) -> dict[str, Any]:
    """What a side's own process prints, free of the settings that raycnn gives its Ray."""
    command = [sys.executable, "-m", f"tests.bench.{module}", *arguments, "--lrs", *map(str, lrs)]
    command += [text for name, value in options.items() for text in (f"--{name}", str(value))]
    printed = subprocess.run(command, stdout=subprocess.PIPE, check=True, env=plain_environment()).stdout
    (line,) = (line for line in printed.splitlines() if line.startswith(b"{"))  # Ray writes there too
    return json.loads(line)


def small_search(root: Path, name: str, trials: int, **settings: Any) -> dict[str, Any]:
    """A search on small pictures below `root`."""
    tree = config_of(root / "small", root / name, image_size=64, **{"train.workers": 1})
    tree["model"] = {"name": "timm/tf_efficientnet_lite0", "weights": "none", "unfreeze": 0}
    rates = [1e-4 * (number + 1) for number in range(trials // len(DEPTHS))]
    space = {"optim.lr": {"grid": rates}, "model.unfreeze": {"grid": DEPTHS}}
    tree["cache"] = {"folder": str(root / f"{name}-cache")}
    return tree | {"search": {"space": space, "confirm": [0, 0]} | settings}


def first_steps(root: Path) -> list[Row]:
    """Seconds from the record of a new trial to the end of its first step by its own log, one trial at a time."""
    write_tree(root / "small", 320, width=48, height=48)
    tree = small_search(root, "first-steps", 6, concurrent=1)
    tree["train"]["log_every"] = 1
    trials = root / "first-steps" / tree["run"]["name"] / records.FOLDER
    begun: dict[str, float] = {}
    with subprocess.Popen(command_of("search", tree, root), stdout=subprocess.DEVNULL) as job:
        while job.poll() is None:
            time.sleep(0.02)
            for folder in trials.glob("*"):
                begun.setdefault(folder.name, time.time())
    seconds = [json.loads((trials / name / "metrics.jsonl").open().readline())["time"] - begun[name] for name in begun]
    first, *others = seconds
    figures = f"{max(others):.1f} at most, {statistics.median(others):.1f} median; the search's first {first:.1f}"
    return [("a trial from its start to its first step, s", figures, "-", "-", "<= 3")]


def waiting(root: Path) -> list[Row]:
    """Peak memory of a pack with few and with many trials waiting, four at a time."""
    write_tree(root / "small", 320, width=48, height=48)
    peaks = {}
    for count in (12, 48):
        tree = small_search(root, f"waiting-{count}", count, concurrent=4)
        peaks[count] = watched(tree, root, verb="search")["pack"]
    name, ratio = "peak memory of a pack, 48 trials, four at a time, MB", peaks[48] / peaks[12]
    return [(name, f"{peaks[48]:.0f}", f"12 trials {peaks[12]:.0f}", f"{ratio:.2f}", "flat")]
