"""`train.exact`: the bits of a run do not depend on its number of workers, nor on a change of it in the middle."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

import raycnn
from raycnn.config import Config
from raycnn.storage import open_store
from tests.support.digits import write_digits
from tests.support.runs import final_hashes

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("local_ray")]


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("exact")
    write_digits(root / "digits", 36)
    return root


def config(root: Path, name: str, workers: int) -> Config:
    """Depth in phases, BatchNorm, dropout, augmentation, warmup, clipping and early evaluation are all in it."""
    tree = {
        "run": {"name": name, "storage": str(root / "runs")},
        "data": {"source": str(root / "digits"), "val_fraction": 0.2, "test_fraction": 0.1, "image_size": 32},
        "model": {
            "name": "torchvision/mobilenet_v3_small",
            "weights": "none",
            "unfreeze": [{"depth": 1, "epochs": 0.7}, {"depth": 2, "epochs": 9}],
        },
        "augment": {"crop_scale": [0.8, 1.0]},
        "optim": {"lr": 0.002, "warmup_epochs": 0.5, "clip_norm": 1.0},
        "loss": {"label_smoothing": 0.1, "class_weights": "balanced"},
        "train": {
            "epochs": 2, "global_batch": 32, "chunk": 16, "workers": workers, "exact": True,
            "checkpoint_every": 4, "log_every": 3, "eval_every": 0.6,
        },
    }  # fmt: skip
    return raycnn.load_config(tree)


def hashes(root: Path, name: str) -> dict[str, Any]:
    return final_hashes(open_store(str(root / "runs" / name)))


@pytest.fixture(scope="module")
def one(digits: Path) -> dict[str, Any]:
    """What one worker ends with."""
    assert raycnn.train(config(digits, "one", 1))["status"] == "finished"
    return hashes(digits, "one")


def test_two_workers_end_with_the_same_bits(one: dict[str, Any], digits: Path) -> None:
    raycnn.train(config(digits, "two", 2))
    assert hashes(digits, "two") == one


def test_a_run_that_changes_its_size_twice_ends_with_the_same_bits(one: dict[str, Any], digits: Path) -> None:
    stops = []
    for workers, until in ((2, 4), (1, 9), (4, 99)):

        def leave(progress: dict[str, Any], lines: list[str], until: int = until) -> None:
            if progress.get("step", 0) >= until and len(stops) < 2 and until not in stops:
                stops.append(until)
                os.kill(os.getpid(), signal.SIGTERM)

        result = raycnn.train(config(digits, "changing", workers), show=leave)
        assert result["status"] == ("finished" if workers == 4 else "preempted")
    assert stops == [4, 9]
    assert hashes(digits, "changing") == one
