"""The verb: run the trials, choose and commit a winner, look at the test split once, tell."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any

from raycnn.config import Config
from raycnn.data.manifest import Index
from raycnn.searching.answer import goal
from raycnn.searching.costs import describe
from raycnn.searching.former import Former
from raycnn.searching.pictures import MISSING, available, heat_map, learning_curves
from raycnn.searching.records import TrialRecord
from raycnn.searching.refit import refit
from raycnn.searching.settings import check_goal, check_rows
from raycnn.searching.summary import overview
from raycnn.searching.trials import Trials
from raycnn.searching.winner import Winner, keep, look_at_test, pick
from raycnn.storage import Store
from raycnn.storage.lease import Lease
from raycnn.training.asked import chosen_by, settled_by
from raycnn.training.groups import Show
from raycnn.training.run import RESULT


def search(
    config: Config, store: Store, index: Index, lease: Lease, show: Show, former: Former | None = None
) -> dict[str, Any]:
    """Search in the run's folder `store`, from where an interrupted search left off. Needs an initialised Ray.

    Args:
        config: see `settings.settings_of`.
        store: the run's folder.
        index: the pinned index.
        lease: of the run, held by this process.
        show: called with news.
        former: the search before this one; its best settings are tried first, and its winner is what to beat.

    Returns:
        `overview` of the trials, and {best, prefix, confirm, test, against_former, files, seconds}.

    Raises:
        Preempted: asked to leave; everything is kept.
        RaycnnError: as the search ends.
    """
    started = time.monotonic()
    asked, (config, _) = config, settled_by(config, index)
    show({}, chosen_by(config, asked))
    check_goal(config)
    check_rows(index)
    trials = Trials(config, store, index, lease, show, former.best_values(config) if former else [])

    def conclude(found: list[TrialRecord], packs: list[Any]) -> tuple[list[TrialRecord], Winner | None, dict[str, Any]]:
        """The records, a winner that is to be trained again, and what is known of any other."""
        show({"phase": "choosing the best and looking at the test split"}, [])
        winner, confirm = pick(config, store, found)
        result = {**overview(found, config), "best": None, "confirm": confirm, "test": None, "against_former": None}
        if winner and config.search.refit and not trials.over_budget:
            return found, winner, result
        return found, None, result | (told(winner, packs) if winner else {})

    def told(winner: Winner, packs: Sequence[Any] = ()) -> dict[str, Any]:
        commit = keep(store, lease, winner)
        tested, against = look_at_test(config, store, commit, index, former, packs)
        return {
            "best": winner.told(config, f"{store.uri}/checkpoints/{commit.name}"),
            "test": tested,
            "against_former": against,
        }

    found, again, result = trials.run(conclude)
    if again:
        result |= told(refit(config, store, index, again, show))
    result["prefix"] = shared_work(trials, found)
    result["files"] = draw(config, store, found, show)
    result["seconds"] = round(time.monotonic() - started, 1)
    store.put(RESULT, json.dumps(result, indent=1, allow_nan=False).encode())
    return result


def shared_work(trials: Trials, found: list[TrialRecord]) -> dict[str, Any]:
    """What the trials shared: passes over the images against their own epochs."""
    rows = sum(max(counter["rows"].values(), default=0) for counter in trials.counters)
    seconds = sum(c["seconds"].get(phase, 0.0) for c in trials.counters for phase in ("data", "prefix", "fill"))
    epochs = {each.id: each.evaluations[-1].epochs for each in found if each.evaluations}
    alone = sum(
        epochs[each.id] * trials.plan.num_rows * trials.seconds_per_image(each.values)
        for each in found
        if each.id in epochs
    )
    return {
        "passes": round(rows / max(1, trials.plan.num_rows), 3),
        "trial_epochs": round(sum(epochs.values()), 3),
        "cuts": describe(trials.costs, trials.choices),
        "cached_bytes": trials.kept_bytes,
        "seconds": round(seconds, 1),
        "seconds_saved": round(alone - seconds, 1),
    }


def draw(config: Config, store: Store, found: list[TrialRecord], show: Show) -> dict[str, str]:
    """Put the pictures below search/ of the run; where they and the checkpoints lie, by title."""
    metric, mode = goal(config)
    files = {"run": store.uri, "checkpoints": f"{store.uri}/checkpoints", "trials": f"{store.uri}/search/trials"}
    if not available():
        show({}, [MISSING])
    searched = [record for record in found if record.stage == "search"]
    pictures = {"curves": learning_curves(searched, metric, mode), "heat map": heat_map(searched, metric, mode)}
    for title, name in (("curves", "learning-curves.png"), ("heat map", "depth-by-learning-rate.png")):
        if (picture := pictures[title]) is not None:
            store.put(f"search/{name}", picture)
            files[title] = f"{store.uri}/search/{name}"
    return files
