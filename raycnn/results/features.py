"""Features for all rows of a run, a bucket or a folder, as one Parquet file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from typing import Any, Final

import pyarrow as pa

from raycnn.config import Config
from raycnn.data.manifest import Index, Kind, shown_names
from raycnn.data.sources import list_images
from raycnn.errors import DataError
from raycnn.results.extract import Extracted, Frozen, extract, of_run
from raycnn.results.parts import Parts, digest_of, name_of, place_of, write
from raycnn.storage import Store

Show = Callable[[dict[str, Any], list[str]], None]

_LABELS: Final = {"class": pa.string(), "classes": pa.list_(pa.string()), "number": pa.float64()}


def features(config: Config, store: Store, index: Index, show: Show) -> dict[str, Any]:
    """Write the features of `features.source`, or of all rows of the index. Needs an initialised Ray.

    The file has a row per image, in order: key, label (its class by name; of several labels a list, of numbers the
    number; null: the source has none), split (null likewise), features_DEPTH (list of float32: for each asked cut the
    mean over all places of what the network makes of the image up to there), reason (why an image could not be read,
    else null; its features are null then). The file appears only when it is complete; the same command after an
    interruption goes on from the rows that were kept.

    Args:
        config: of the run.
        store: the run's folder.
        index: the run's, or of its source as it is now.

    Returns:
        {run, network, weights: step-N or start, rows, unreadable, cuts: [depth], output}
    """
    frozen = of_run(config, store, index, config.features.step, config.features.cuts, lambda line: show({}, [line]))
    source, table, name = index.source, index.manifest, "index"
    if config.features.source is not None:
        source, table = list_images(config.features.source)
        name = name_of(config.features.source)
    if not len(table):
        raise DataError("no images", where=f"features.source: {source}", fix="check the path")
    schema = _schema(config, frozen, index.kind)
    target, key = place_of(config.features.output, store, f"features/{name}.{frozen.version}.parquet")

    def fresh(start: int) -> Iterator[pa.Table]:
        for found in extract(config, [frozen], source, table, start):
            show({"phase": f"features: {found.rows[-1] + 1} of {len(table)}"}, [])
            yield _rows(found, table, index, schema)

    store.child("features").sweep()
    parts = Parts(store.child(f"features/{name}.parts"), _digest(config, frozen, source, table), schema)
    unreadable = write(parts, fresh, target, key)
    return {
        "run": config.run.name,
        "network": frozen.facts.name,
        "weights": frozen.version,
        "rows": len(table),
        "unreadable": unreadable,
        "cuts": list(frozen.depths),
        "output": f"{target.uri}/{key}",
    }


def _schema(config: Config, frozen: Frozen, kind: Kind) -> pa.Schema:
    columns = [("key", pa.string()), ("label", _LABELS[kind]), ("split", pa.string())]
    columns += [(f"features_{depth}", pa.list_(pa.float32())) for depth in frozen.depths]
    metadata = {"run": config.run.name, "network": frozen.facts.name, "weights": frozen.version}
    return pa.schema([*columns, ("reason", pa.string())], metadata=metadata)


def _digest(config: Config, frozen: Frozen, source: str, table: pa.Table) -> str:
    """Of all that decides the rows: the network and its weights, the images, what is refused of them."""
    settings: list[Any] = [config.data.max_pixels, config.data.max_bytes, config.train.precision]
    view = json.dumps(frozen.facts.preprocessing.as_json())
    about = [source, frozen.facts.name, view, frozen.facts.chunk, hashlib.sha256(frozen.weights).hexdigest()]
    return digest_of([*about, list(frozen.depths), *settings], table)


def _rows(found: Extracted, table: pa.Table, index: Index, schema: pa.Schema) -> pa.Table:
    table, bad = table.take(pa.array(found.rows)), found.reasons != ""
    columns: dict[str, Any] = {"key": shown_names(table), "label": _labels(table, index)}
    columns["split"] = table["split"] if "split" in table.column_names else pa.nulls(len(table), pa.string())
    for depth, values_NF in found.features[0].items():
        values = [None if b else row for b, row in zip(bad, values_NF, strict=True)]
        columns[f"features_{depth}"] = pa.array(values, pa.list_(pa.float32()))
    columns["reason"] = pa.array([str(reason) or None for reason in found.reasons], pa.string())
    return pa.table(columns, schema=schema)


def _labels(table: pa.Table, index: Index) -> Any:
    """What each row's target is, in words or as a number."""
    if "label" not in table.column_names:
        return pa.nulls(len(table), _LABELS[index.kind])
    if index.kind == "number":
        return table["value"]
    names = pa.array(index.classes, pa.string())
    if index.kind == "class":
        return names.take(table["label"].combine_chunks())
    return pa.array([[index.classes[k] for k in labels] for labels in table["labels"].to_pylist()], _LABELS["classes"])
