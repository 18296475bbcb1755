"""python -m tests.study.splits RECIPE: its test accuracy on repeated stratified 75/25 splits of the solar cells.

Beside it two baselines on the same rows: logistic regression and a linear SVM on what the frozen network sees, their
strength chosen by 5-fold cross-validation inside the 75. A split that is done is not done again.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow.parquet as pq
from scipy import stats
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC

import raycnn
from raycnn.cluster import connect
from raycnn.config import Config, load_config
from raycnn.progress import Progress, quiet_logs
from tests.support.recipes import config_of_recipe

TEST_SHARE: Final = 0.25
STRENGTHS: Final = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""C of the baselines, on standardised features."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.study.splits", description=__doc__)
    parser.add_argument("recipe", type=Path, help="a recipe that trains on demo-output/cells")
    parser.add_argument("--splits", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=Path("demo-output"))
    options = parser.parse_args()
    folder = options.folder.absolute()
    quiet_logs()
    found = []
    with connect():
        for seed in range(options.splits):
            changes = {"data.split_seed": seed, "data.test_fraction": TEST_SHARE}
            changes["run.name"] = f"{options.recipe.stem}-split-{seed}"
            config = config_of_recipe(options.recipe, folder, changes)
            found.append(_once(folder, config, trained) | _once(folder, config, baselines))
    print(table(found))


def _once(folder: Path, config: Config, measure: Callable[[Config], dict[str, float]]) -> dict[str, float]:
    told = folder / "splits" / f"{config.run.name}-{measure.__name__}.json"
    if not told.exists():
        found = measure(config)
        print(f"{config.run.name}: {found}", file=sys.stderr, flush=True)
        told.parent.mkdir(parents=True, exist_ok=True)
        told.write_text(json.dumps(found))
    return dict(json.loads(told.read_text()))


def trained(config: Config) -> dict[str, float]:
    """What the recipe comes to, and the minutes that it took."""
    progress, start = Progress(), time.perf_counter()
    raycnn.train(config, show=progress.show)
    metrics = raycnn.evaluate(config)["metrics"]
    progress.close()
    minutes = (time.perf_counter() - start) / 60
    return {"accuracy": metrics["accuracy"], "macro F1": metrics["macro_f1"], "minutes": minutes}


def baselines(config: Config) -> dict[str, float]:
    """Test accuracy of each, fitted to all other rows."""
    start = load_config(config, {"run.name": f"{config.run.name}-frozen", "features.cuts": [0]})
    rows = pq.read_table(raycnn.features(start)["output"])
    features_NF = np.stack(rows["features_0"].to_numpy())
    labels_N, test_N = rows["label"].to_numpy(), rows["split"].to_numpy() == "test"
    grids = {
        "frozen probe": (LogisticRegression(max_iter=2000), "logisticregression__C"),
        "linear SVM": (LinearSVC(max_iter=20_000), "linearsvc__C"),
    }
    accuracies = {}
    for name, (model, strength) in grids.items():
        grid = GridSearchCV(make_pipeline(StandardScaler(), model), {strength: STRENGTHS})
        grid.fit(features_NF[~test_N], labels_N[~test_N])
        accuracies[name] = float(grid.score(features_NF[test_N], labels_N[test_N]))
    return accuracies


def table(found: list[dict[str, float]]) -> str:
    """Each split, the mean and, but for the minutes, its 95 % interval."""
    metrics = [name for name in found[0] if name != "minutes"]
    rows = [["split", *metrics, "minutes"], ["---"] * (len(metrics) + 2)]
    for seed, row in enumerate(found):
        rows.append([str(seed), *(f"{row[name]:.3f}" for name in metrics), f"{row['minutes']:.1f}"])
    means = [interval([row[name] for row in found]) for name in metrics]
    minutes = np.mean([row["minutes"] for row in found])
    rows.append(["mean", *(f"{mean:.3f} ± {half:.3f}" for mean, half in means), f"{minutes:.1f}"])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def interval(values: list[float]) -> tuple[float, float]:
    """The mean, and half of its 95 % interval: Student's t, with the variance times 1/n + test rows / training rows.

    The second term is Nadeau and Bengio's (2003) correction for splits whose training rows overlap.
    """
    n = len(values)
    variance = float(np.var(values, ddof=1)) * (1 / n + TEST_SHARE / (1 - TEST_SHARE)) if n > 1 else float("nan")
    return float(np.mean(values)), float(stats.t.ppf(0.975, n - 1) * variance**0.5)


if __name__ == "__main__":
    main()
