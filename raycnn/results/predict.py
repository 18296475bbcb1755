"""Predictions for a bucket, a folder or a split, as one Parquet file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pyarrow as pa

from raycnn.config import Config
from raycnn.data.manifest import read_index, shown_names
from raycnn.data.reader import COLUMNS
from raycnn.data.sources import list_images
from raycnn.errors import DataError
from raycnn.results.inference import Scored, infer
from raycnn.results.parts import Parts, digest_of, name_of, place_of, write
from raycnn.results.priors import correction
from raycnn.storage import open_store
from raycnn.training.calibration import Calibration
from raycnn.training.run import find_commit, folder_of, read_state
from raycnn.training.state import NetworkFacts


def predict(config: Config) -> dict[str, Any]:
    """Predict `predict.source`, or the run's test split. Needs an initialised Ray.

    The file has a row per image, in order: key, label (the most probable class; of several labels: labels, a list),
    probabilities (list of float32, one per class, in the order of the file's metadata `classes`), reason (why an image
    could not be read, else null; all else is null then). Of numbers: key, value, reason. Probabilities have the
    temperature, and labels the thresholds, that were chosen on the validation rows; the metadata `calibration` says
    which. The file appears only when it is complete; the same command after an interruption goes on from the rows that
    were kept.

    Returns:
        {run, step, rows, unreadable, output}
    """
    storage = open_store(config.run.storage)
    store = folder_of(config, storage)
    run, commit = find_commit(store, config.predict.step)
    if config.predict.source is None:
        index = read_index(storage, run.index, columns=[*COLUMNS, "split"])
        source, table, name = index.source, index.rows("test"), "test"
    else:
        source, table = list_images(config.predict.source)
        name = name_of(config.predict.source)
    if not len(table):
        raise DataError("no images to predict", where=f"predict.source: {source}", fix="check the path")
    facts, calibration = read_state(store, commit).network, Calibration.of(commit.manifest.get("calibration"))
    target, key = place_of(config.predict.output, store, f"predictions/{name}.step-{commit.step:08d}.parquet")
    keys = shown_names(table)
    correct = correction(storage, run, facts.problem, config.predict.prior, calibration)
    told = {"calibration": json.dumps(calibration.told(facts.classes))}
    schema = pa.schema(
        [
            ("key", pa.string()),
            *facts.problem.columns.items(),
            ("reason", pa.string()),
        ],
        metadata=told | {"classes": "\n".join(facts.classes), "run": config.run.name, "step": str(commit.step)},
    )

    def fresh(start: int) -> Iterator[pa.Table]:
        for scored in infer(config, store, commit, source, table, start=start, tta=config.predict.tta):
            yield _rows(replace(scored, logits_NK=correct(scored.logits_NK)), keys, facts, calibration, schema)

    store.child("predictions").sweep()
    digest = digest_of([source, commit.name, commit.manifest["files"], *_settings(config)], table)
    parts = Parts(store.child(f"predictions/{name}.parts"), digest, schema)
    return {
        "run": config.run.name,
        "step": commit.step,
        "rows": len(table),
        "unreadable": write(parts, fresh, target, key),
        "output": f"{target.uri}/{key}",
    }


def _settings(config: Config) -> list[Any]:
    """What of the config decides the rows: views, prior, what is refused of the images."""
    settings: list[Any] = [config.data.max_pixels, config.data.max_bytes, config.train.precision]
    return [*settings, config.predict.tta, config.predict.prior]


def _rows(
    scored: Scored, keys: pa.ChunkedArray, facts: NetworkFacts, calibration: Calibration, schema: pa.Schema
) -> pa.Table:
    bad = scored.reasons != ""
    columns: dict[str, Any] = {"key": keys.take(pa.array(scored.rows)).combine_chunks()}
    for name, values in facts.problem.answers(scored.logits_NK, facts.classes, calibration).items():
        columns[name] = [None if b else value for b, value in zip(bad, values, strict=True)]
    columns["reason"] = [str(reason) or None for reason in scored.reasons]
    return pa.Table.from_pydict(columns, schema=schema)
