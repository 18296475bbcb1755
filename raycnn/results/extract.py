"""What frozen networks say of images at their cuts: pooled features, of several networks in one pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from raycnn.config import Config, Depth, load_config
from raycnn.data.manifest import Index
from raycnn.data.views import ViewsReader, apart, distinct
from raycnn.errors import ConfigError
from raycnn.models.pooling import pooled
from raycnn.models.stages import Stages, find
from raycnn.models.weights import load_state
from raycnn.results.inference import by_new_actors, scan
from raycnn.storage import Store
from raycnn.training import checkpoint
from raycnn.training.asked import problem_of
from raycnn.training.device import prepare, to_device
from raycnn.training.run import find_commit, read_run, read_state
from raycnn.training.serialize import decode_weights, encode_weights
from raycnn.training.setup import Body, facts_of, network_of
from raycnn.training.start import starting_network
from raycnn.training.state import NetworkFacts

Block = dict[str, npt.NDArray[Any]]
Floats = npt.NDArray[np.float32]
UInt8s = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Frozen:
    """A network with its weights, and where it is cut.

    Args:
        facts: what it is.
        weights: as of a checkpoint.
        depths: of the suffixes whose inputs are wanted, each under its one name.
        version: where the weights are from, step-00000012 or start.
    """

    facts: NetworkFacts
    weights: bytes
    depths: tuple[Depth, ...]
    version: str = "start"


@dataclass(frozen=True)
class Extracted:
    """Features of some rows, in the order of the table.

    rows: int64[N]; reasons: why a row is unreadable, "" where it is not; features: for each network {depth: float32
    [N, F]}, zeros for an unreadable row.
    """

    rows: npt.NDArray[np.int64]
    reasons: npt.NDArray[np.str_]
    features: list[dict[Depth, Floats]]


def of_run(
    config: Config, store: Store, index: Index, step: int | str, depths: Sequence[Depth], say: Callable[[str], None]
) -> Frozen:
    """The network of a run's checkpoint; before its first start with the weights that it would start from.

    Raises:
        ConfigError: a depth that the network does not have.
        CheckpointError: the run has no such checkpoint.
    """
    if read_run(store) is None:
        return of_start(config, index, say, depths)
    _, commit = find_commit(store, step)
    facts = read_state(store, commit).network
    weights = checkpoint.verified(store, commit, ["weights.safetensors"])["weights.safetensors"]
    return Frozen(facts, weights, _canonical(find(network_of(facts, config.given)), depths), f"step-{commit.step:08d}")


def of_start(config: Config, index: Index, say: Callable[[str], None], depths: Sequence[Depth] | None = None) -> Frozen:
    """The network with the weights that a run would start from, cut at the depths; None: at all stages.

    Raises:
        ConfigError: a network that cannot be cut there; or another RaycnnError of its weights.
    """
    facts = facts_of(config, index.classes, problem_of(config, index))
    network = starting_network(config, facts, say, index=index)
    stages = find(network)
    wanted = _canonical(stages, range(stages.num_stages + 1) if depths is None else depths)
    return Frozen(facts, encode_weights(network.module.state_dict()), wanted)


def _canonical(stages: Stages, depths: Sequence[Depth]) -> tuple[Depth, ...]:
    """The depths under their one names, each once."""
    try:
        return tuple(dict.fromkeys(map(stages.canonical, depths)))
    except ConfigError as error:
        where = error.where.replace("model.unfreeze", "cut")
        raise ConfigError(error.what, where=where, fix=error.fix) from None


def extract(
    config: Config, networks: Sequence[Frozen], source: str, table: pa.Table, start: int = 0
) -> Iterator[Extracted]:
    """Features of every row of `table` from `start` on; the bits do not depend on the number of workers.

    Needs an initialised Ray. Each image is fetched and decoded once, whatever the number of networks, and resized once
    for those with equal views.

    Args:
        config: workers, threads, precision and limits are taken from it.
        networks: with one chunk.
        source: uri that the table's keys are relative to.
        table: with the columns COLUMNS.
    """
    import ray

    views, which = distinct(each.facts.preprocessing for each in networks)
    chunk = networks[0].facts.chunk
    reader = ViewsReader.of(config.data, source, views[0], others=tuple(views[1:]))
    held = [
        (each.facts, ray.put(each.weights), each.depths, place) for each, place in zip(networks, which, strict=True)
    ]
    settings = load_config(config, {"train.chunk": chunk, "train.compile": "none"})  # as evaluate, which never compiles
    work = by_new_actors(Extractor, (settings, held, views), config.train.workers)
    for got in scan(reader, table, chunk, config.train.workers, work, start):
        features = [{d: got[_column(n, d)] for d in each.depths} for n, each in enumerate(networks)]
        yield Extracted(got["row"], got["reason"], features)


def gather(found: Iterator[Extracted], on: Callable[[int], None] = lambda rows: None) -> Extracted:
    """All rows in one, which memory has to hold; `on` is told how many there are so far."""
    parts: list[Extracted] = []
    for each in found:
        parts.append(each)
        on(int(each.rows[-1]) + 1 if len(each.rows) else 0)
    first = parts[0].features
    return Extracted(
        np.concatenate([part.rows for part in parts]),
        np.concatenate([part.reasons for part in parts]),
        [{d: np.concatenate([part.features[n][d] for part in parts]) for d in first[n]} for n in range(len(first))],
    )


class Extractor:
    """The networks in one actor: blocks of images to pooled features, in chunks of one fixed size."""

    def __init__(self, config: Config, networks: list[Any], views: list[Any]) -> None:
        import ray

        self._device = torch.device("cuda" if ray.get_gpu_ids() else "cpu")
        prepare(self._device, config.train.threads)
        self._chunk, self._views = config.train.chunk, views
        self._networks = []
        for facts, weights, depths, place in networks:
            body = Body(config, facts, self._device)
            load_state(body.module, decode_weights(ray.get(weights)), where=f"weights of {facts.name}")
            self._networks.append((body.prefix, depths, place))

    def __call__(self, block: Block) -> Block:
        """Columns image, row, reason, error to row, reason, error and one of features for each network and cut."""
        found: dict[str, list[Floats]] = {}
        for start in range(0, len(block["row"]), self._chunk):
            images_NB = block["image"][start : start + self._chunk]
            for name, values in self._features(images_NB):
                found.setdefault(name, []).append(values)
        features = {name: np.concatenate(parts) for name, parts in found.items()}
        for values in features.values():
            values[block["reason"] != ""] = 0
        return {name: block[name] for name in ("row", "reason", "error")} | features

    @torch.inference_mode()
    def _features(self, images_NB: UInt8s) -> Iterator[tuple[str, Floats]]:
        size = len(images_NB)
        padded_NB = np.pad(images_NB, ((0, self._chunk - size), (0, 0)))  # the mean's bits depend on the shape too
        views = [to_device(view, self._device) for view in apart(padded_NB, self._views)]
        for number, (prefix, depths, place) in enumerate(self._networks):
            for depth, activations in prefix.taps(views[place], depths).items():
                yield _column(number, depth), pooled(activations).cpu().numpy()[:size]


def _column(network: int, depth: Depth) -> str:
    return f"{network}/{depth}"


def sample(table: pa.Table, size: int) -> pa.Table:
    """At most so many rows of a table, in its order: those with the smallest key hashes, whatever else there is."""
    if len(table) <= size:
        return table
    smallest = np.argsort(table["key_hash"].to_numpy(), kind="stable")[:size]
    return table.take(pa.array(np.sort(smallest)))
