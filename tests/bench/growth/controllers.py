"""What Ray Train's controller takes for each rank, and Ray Tune's for each trial, when neither does any work."""

from __future__ import annotations

import os
import tempfile
import threading
import time
from typing import Any
from unittest.mock import patch

from tests.bench.growth.processes import cpu_seconds

WORLDS, TRAIN_S = (1, 4), 8.0
TRIALS, AT_ONCE = (16, 64), 4


def measure() -> dict[str, Any]:
    """{train: [{world, controller_s}], tune: [{trials, seconds, driver_s}]}."""
    from raycnn.cluster import connect

    with connect():
        return {"train": [_train(world) for world in WORLDS], "tune": [_tune(trials) for trials in TRIALS]}


def _idle(settings: dict[str, float]) -> None:
    time.sleep(settings["seconds"])


def _train(world: int) -> dict[str, float]:
    """CPU seconds of the controller's process for each second that its ranks train."""
    from ray.train import RunConfig, ScalingConfig
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

    with tempfile.TemporaryDirectory() as folder:
        trainer = DataParallelTrainer(
            _idle, train_loop_config={"seconds": 3 * TRAIN_S},
            scaling_config=ScalingConfig(num_workers=world, resources_per_worker={"CPU": 0.1}),
            run_config=RunConfig(storage_path=folder, name=f"idle-{world}"),
        )  # fmt: skip
        thread = threading.Thread(target=trainer.fit)
        thread.start()
        time.sleep(1.5 * TRAIN_S)  # until all ranks are there
        before = cpu_seconds()["controller"]
        time.sleep(TRAIN_S)
        used = cpu_seconds()["controller"] - before
        thread.join()
    return {"world": world, "controller_s": used / TRAIN_S}


def _tune(trials: int) -> dict[str, float]:
    from ray import tune

    class Nothing(tune.Trainable):
        def setup(self, config: dict[str, Any]) -> None:
            pass

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            return True

        def step(self) -> dict[str, Any]:
            return {"done": self.iteration >= 1}

        def save_checkpoint(self, checkpoint_dir: str) -> None:
            pass

    quiet = patch.dict(os.environ, {"RAY_AIR_NEW_OUTPUT": "0"})  # else it prints tables whatever is asked for
    with quiet, tempfile.TemporaryDirectory() as folder:
        start, before = time.perf_counter(), time.process_time()
        tune.Tuner(
            tune.with_resources(Nothing, {"CPU": 0.01}),
            tune_config=tune.TuneConfig(num_samples=trials, max_concurrent_trials=AT_ONCE, reuse_actors=True),
            run_config=tune.RunConfig(name="nothing", storage_path=folder, verbose=0),
        ).fit()
        return {
            "trials": trials,
            "seconds": time.perf_counter() - start,
            "driver_s": time.process_time() - before,
        }
