"""The first commit of a run: the weights it starts from."""

from __future__ import annotations

from collections.abc import Callable

from raycnn.config import Config
from raycnn.data.keyed import derive_seed
from raycnn.data.manifest import Index
from raycnn.models.batchnorm import learnt_statistics
from raycnn.models.weights import load_pretrained
from raycnn.models.zoo import Network
from raycnn.storage import Store, open_store
from raycnn.storage.lease import LeaseRecord
from raycnn.training import checkpoint
from raycnn.training.recalibrate import recalibrate
from raycnn.training.recorder import Run
from raycnn.training.run import RunFacts, find_commit, parent_of, place_of
from raycnn.training.serialize import encode_optimizer, encode_weights
from raycnn.training.setup import network_of
from raycnn.training.state import NetworkFacts, TrainState


def first_commit(
    config: Config, store: Store, record: LeaseRecord, facts: NetworkFacts, say: Callable[[str], None],
    told: RunFacts | None = None, index: Index | None = None,
) -> None:  # fmt: skip
    """Commit step 0: the network with its starting weights, so that every worker group starts from a checkpoint."""
    network = starting_network(config, facts, say, told, index)
    files = {
        "weights.safetensors": encode_weights(network.module.state_dict()),
        "optimizer.pt": encode_optimizer({}),
    }
    Run(store, config, record, config.train.workers).commit(TrainState(facts), lambda: files, [], evaluated=False)


def starting_network(
    config: Config, facts: NetworkFacts, say: Callable[[str], None], told: RunFacts | None = None,
    index: Index | None = None,
) -> Network:  # fmt: skip
    """The network with the weights that the config names (a file, another run, the zoo's), else from scratch.

    Args:
        told: facts of the run or search, which pin the checkpoint of another run that it starts from.
        index: whose rows model.recalibrate looks at.
    """
    network = network_of(facts, config.given, derive_seed(config.train.seed, "init"))
    if config.model.weights == "none":
        say(f"{network.name}: from scratch, seed {config.train.seed}")
    else:
        pin = config.model.weights_sha256
        say(load_pretrained(network, config.model.weights, sha256=pin, read=_reader(config, told)))
    if config.model.batchnorm == "frozen" and not learnt_statistics(network.module):
        say("model.batchnorm: frozen keeps statistics that nothing has been learnt of; local or sync learn them")
    if config.model.recalibrate != "none":
        assert index is not None
        recalibrate(network.module, config, facts, index, say)
    return network


def _reader(config: Config, told: RunFacts | None) -> Callable[[str], bytes]:
    def read(uri: str) -> bytes:
        if uri.startswith("run:"):
            parent = parent_of(config, told) or {}
            return best_weights(place_of(config, uri), parent.get("step", "best"))
        folder, _, name = uri.rpartition("/")
        return open_store(folder or ".").get(name)

    return read


def best_weights(store: Store, step: int | str = "best") -> bytes:
    """The weights of a run's best checkpoint, or of another one."""
    _, commit = find_commit(store, step)
    return checkpoint.verified(store, commit, ["weights.safetensors"])["weights.safetensors"]
