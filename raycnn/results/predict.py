"""Predictions for a bucket, a folder or a split, as one Parquet file."""

from __future__ import annotations

import hashlib
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from raycnn.config import Config
from raycnn.data.manifest import read_index, shown_names
from raycnn.data.reader import COLUMNS
from raycnn.data.sources import list_images
from raycnn.errors import DataError
from raycnn.results.inference import Scored, infer
from raycnn.results.parts import Parts
from raycnn.results.priors import correction
from raycnn.storage import Store, open_store
from raycnn.training.calibration import Calibration
from raycnn.training.commit import Commit
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
        name = hashlib.sha256(config.predict.source.encode()).hexdigest()[:12]
    if not len(table):
        raise DataError("no images to predict", where=f"predict.source: {source}", fix="check the path")
    facts, calibration = read_state(store, commit).network, Calibration.of(commit.manifest.get("calibration"))
    target, key = _target(config, store, f"predictions/{name}.step-{commit.step:08d}.parquet")
    keys, unreadable = shown_names(table), 0
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
    store.child("predictions").sweep()
    parts = Parts(store.child(f"predictions/{name}.parts"), _digest(config, source, table, commit), schema)
    with tempfile.TemporaryFile() as file:  # without a name, so that it goes with the process however that dies
        with pq.ParquetWriter(file, schema) as writer:
            for rows in parts.read():
                writer.write_table(rows)
                unreadable += len(rows) - rows["reason"].null_count
            for scored in infer(config, store, commit, source, table, start=parts.rows, tta=config.predict.tta):
                rows = _rows(replace(scored, logits_NK=correct(scored.logits_NK)), keys, facts, calibration, schema)
                writer.write_table(rows)
                parts.add(rows)
                unreadable += len(rows) - rows["reason"].null_count
        file.flush()
        target.put_file(key, Path(f"/dev/fd/{file.fileno()}"))
    parts.clear()
    return {
        "run": config.run.name,
        "step": commit.step,
        "rows": len(table),
        "unreadable": unreadable,
        "output": f"{target.uri}/{key}",
    }


def _digest(config: Config, source: str, table: pa.Table, commit: Commit) -> str:
    """Of all that decides the rows: the checkpoint, the images, what is refused of them."""
    settings: list[Any] = [config.data.max_pixels, config.data.max_bytes, config.train.precision]
    settings += [config.predict.tta, config.predict.prior]
    about = [source, commit.name, commit.manifest["files"], *settings]
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    columns = [name for name in COLUMNS if name in table.column_names]
    for batch in table.select(columns).to_batches():
        digest.update(json.dumps(batch.to_pydict(), default=bytes.hex).encode())
    return digest.hexdigest()[:16]


def _target(config: Config, store: Store, default: str) -> tuple[Store, str]:
    if config.predict.output is None:
        return store, default
    folder, _, name = config.predict.output.rpartition("/")
    return open_store(folder or "."), name


def _rows(
    scored: Scored, keys: pa.ChunkedArray, facts: NetworkFacts, calibration: Calibration, schema: pa.Schema
) -> pa.Table:
    bad = scored.reasons != ""
    columns: dict[str, Any] = {"key": keys.take(pa.array(scored.rows)).combine_chunks()}
    for name, values in facts.problem.answers(scored.logits_NK, facts.classes, calibration).items():
        columns[name] = [None if b else value for b, value in zip(bad, values, strict=True)]
    columns["reason"] = [str(reason) or None for reason in scored.reasons]
    return pa.Table.from_pydict(columns, schema=schema)
