"""How far new images are from the training rows, on what goes into the head, and what to do about it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any, Final

import pyarrow as pa

from raycnn.config import Config
from raycnn.data.manifest import Index
from raycnn.data.sources import list_images
from raycnn.errors import ConfigError, DataError
from raycnn.models.batchnorm import with_statistics
from raycnn.models.weights import load_state
from raycnn.results.compare import FEWEST, Side, advice, compare
from raycnn.results.extract import Frozen, extract, gather, of_run, sample
from raycnn.results.parts import name_of
from raycnn.storage import Store
from raycnn.training.recalibrate import recalibrate_on
from raycnn.training.serialize import decode_weights, encode_weights
from raycnn.training.setup import network_of

FOLDER: Final = "shift"

Show = Callable[[dict[str, Any], list[str]], None]


def shift(config: Config, store: Store, index: Index, show: Show) -> dict[str, Any]:
    """See verbs.shift. Needs an initialised Ray; writes below shift/ of the run's folder alone.

    Raises:
        ConfigError: no target.
        DataError: too few images on either side, or more of them unreadable than data.bad_image_budget.
    """
    start = time.perf_counter()
    if config.shift.target is None:
        fix = "give a folder, bucket prefix or manifest of images: --shift.target s3://my-bucket/new"
        raise ConfigError("nothing to compare with", where="shift.target", fix=fix)
    source, table = list_images(config.shift.target)
    rows = {split: index.rows(split) for split in ("train", "val")}
    looked = min(config.shift.rows, len(table), len(rows["train"]) // 2)
    if looked < FEWEST:
        what = f"{len(table)} images and {len(rows['train'])} training rows are too few to compare"
        fix = f"give at least {FEWEST}, and twice as many training rows"
        raise DataError(what, where=f"shift.target: {source}", fix=fix)
    frozen = of_run(config, store, index, config.shift.step, [0], lambda line: show({}, [line]))

    def side(name: str, uri: str, table: pa.Table, calibrate: bool = True) -> Side:
        show({"phase": f"{name}: {len(table)} images"}, [])
        return _side(config, frozen, uri, table, calibrate)

    target = side("target", source, sample(table, looked))
    ours = side("training rows", index.source, sample(rows["train"], 2 * looked))
    unseen = None
    if len(rows["val"]) >= FEWEST:
        unseen = side("validation rows", index.source, sample(rows["val"], looked), calibrate=False)
    show({"phase": "comparing"}, [])
    found = compare(ours, target, unseen, index.kind, index.classes, config.shift.listed)
    about = {"run": config.run.name, "network": frozen.facts.name, "weights": frozen.version, "target": source}
    told = about | found | {"advice": advice(found, config.shift.target)}
    told["seconds"] = round(time.perf_counter() - start, 1)
    key = f"{FOLDER}/{name_of(config.shift.target)}.{frozen.version}.json"
    store.put(key, json.dumps(told, indent=1).encode())
    return told | {"output": f"{store.uri}/{key}"}


def _side(config: Config, frozen: Frozen, source: str, table: pa.Table, calibrate: bool) -> Side:
    """Features of some images, also by the network with BatchNorm statistics of these very images, if it has any."""
    networks, facts = [frozen], frozen.facts
    module = network_of(facts, config.given).module
    if calibrate and with_statistics(module):
        load_state(module, decode_weights(frozen.weights), where="weights.safetensors")
        recalibrate_on(module, config, facts, source, table)
        networks.append(Frozen(facts, encode_weights(module.state_dict()), frozen.depths))
    found = gather(extract(config, networks, source, table))
    good = found.reasons == ""
    if (~good).mean() > config.data.bad_image_budget:
        what = f"{(~good).sum()} of {len(good)} images cannot be read"
        raise DataError(what, where=f"data.bad_image_budget: {source}", fix="remove them, or raise it")
    plain, *calibrated = (features[0][good] for features in found.features)
    return Side(table.filter(pa.array(good)), plain, calibrated[0] if calibrated else None)
