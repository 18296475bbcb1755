"""What the tests on a cluster train, and jobs that train it in a process of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import raycnn
from raycnn.config import Config
from raycnn.data.keyed import derive_seed
from raycnn.data.plan import Plan
from raycnn.storage import Store, open_store
from tests.faults.kit.cluster import HOOK, PROJECT
from tests.faults.kit.history import Faults, History
from tests.faults.kit.inside import ROOT
from tests.support.runs import final_hashes

EVERY = 5
ROWS = 280  # training rows of the 400 digits


@dataclass(frozen=True)
class Bench:
    """Where the runs of a test lie: `faults` for orders and history, `storage` for the runs, `source` the images."""

    faults: Path
    storage: Path
    source: Path

    def config(self, name: str, world: int, **changes: Any) -> Config:
        """A run of everything that a resume could get wrong: augmentation, warmup and cosine, early stopping, the
        best checkpoint, phases of depth. 20 steps, of 0.02 s or so.
        """
        config = {
            "run": {"name": name, "storage": str(self.storage)},
            "data": {"source": str(self.source), "val_fraction": 0.15, "test_fraction": 0.15, "stratify": True},
            "model": {
                "name": "reference/lenet", "weights": "none",
                "unfreeze": [{"depth": 0, "epochs": 1}, {"depth": "all", "epochs": 9}],
            },
            "augment": {"crop_scale": [0.8, 1.0], "hflip": 0.5},
            "optim": {"name": "adamw", "lr": 0.005, "warmup_epochs": 0.5, "schedule": "cosine"},
            "train": {
                "epochs": 2.2, "global_batch": 32, "chunk": 16, "checkpoint_every": EVERY, "log_every": 1,
                "eval_every": 0.7, "metric": "loss", "patience": 3, "keep": 999, "workers": world,
            },
        }  # fmt: skip
        return raycnn.load_config(config, changes)

    def faults_of(self, config: Config) -> Faults:
        """Orders and history of a run."""
        return Faults(self.faults, config.run.name)

    def store(self, config: Config) -> Store:
        """The run's folder."""
        return open_store(str(self.storage / config.run.name))

    def history(self, config: Config) -> History:
        """What happened to a run."""
        return self.faults_of(config).history(self.store(config))

    def start(self, config: Config, address: str, environment: dict[str, str]) -> subprocess.Popen[str]:
        """`raycnn train` as a process of its own."""
        path = self.storage / f"{config.run.name}.yaml"
        path.write_text(json.dumps(config.model_dump(mode="json")))
        command = [sys.executable, "-m", "raycnn.cli", "train", str(path), "--json", "--address", address]
        pythonpath = os.pathsep.join([str(HOOK), str(PROJECT)])
        variables = environment | {"PYTHONPATH": pythonpath, ROOT: str(self.faults)}
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(command, env=variables, start_new_session=True, **pipes)


@dataclass(frozen=True)
class Undisturbed:
    """By world size, what a run that nobody disturbs ends with; needs a cluster when first asked."""

    bench: Bench
    known: dict[int, dict[str, Any]] = field(default_factory=dict)

    def __call__(self, world: int) -> dict[str, Any]:
        if world not in self.known:
            config = self.bench.config(f"undisturbed-{world}", world)
            raycnn.train(config)
            self.known[world] = final_hashes(self.bench.store(config))
        return self.known[world]


def plan_of(config: Config) -> Plan:
    """What the run should train."""
    return Plan(ROWS, config.train.global_batch, derive_seed(config.train.seed, "data"))


def finish(job: subprocess.Popen[str], code: int = 0) -> dict[str, Any]:
    """Wait for a job, which must end with a code; what it printed."""
    out, err = job.communicate(timeout=200)
    assert job.returncode == code, err
    found: dict[str, Any] = json.loads(out)
    return found
