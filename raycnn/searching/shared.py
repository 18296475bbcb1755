"""What trials have in common: the settings that decide stream and prefix, and the weights they start from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Final

from raycnn.config import Config, hashed, identity
from raycnn.data.manifest import Index
from raycnn.storage import Store
from raycnn.storage.lease import adopt
from raycnn.training import checkpoint
from raycnn.training.run import read_run
from raycnn.training.start import first_commit
from raycnn.training.state import NetworkFacts

_OWN: Final = ("optim.", "loss.", "model.unfreeze", "model.batchnorm", "train.ema", "train.micro_batch")
_TEACHER: Final = "loss.distill.teacher"  # answers once for all that see the same images
_START: Final = (
    "model.name",
    "model.weights",
    "model.head",
    "model.recalibrate",
    "data.image_size",
    "train.seed",
    "train.chunk",
)


def share_key(config: Config) -> str:
    """Equal for two configs whose trials see the same batches and the same frozen network."""
    settings = identity(config).items()
    return _digest({path: value for path, value in settings if path == _TEACHER or not path.startswith(_OWN)})


def start_folder(config: Config) -> str:
    """Folder, below the run's, of the commit with the weights that trials of this config start from."""
    paths = _START if config.model.recalibrate != "train" else (*_START, "train.fold")  # whose rows it looks at
    settings = {path: value for path, value in hashed(config).items() if path.startswith(paths)}
    return f"search/start/{_digest(settings)}"


def write_start(
    config: Config, run: Store, owner: str, facts: NetworkFacts, say: Callable[[str], None],
    index: Index | None = None,
) -> None:  # fmt: skip
    """Commit the weights that trials of this config start from, unless they are there; workers never fetch any."""
    store = run.child(start_folder(config))
    if checkpoint.commits(store, None):
        return
    record = adopt(store, owner, lambda held: checkpoint.newest_step(store, held))
    first_commit(config, store, record, facts, say, read_run(run), index)


def _digest(settings: dict[str, object]) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
