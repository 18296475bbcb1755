"""python -m tests.bench.bare_train FOLDER: the least that Ray Train takes until a loop runs; then writes the time."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any


def loop(told: dict[str, Any]) -> None:
    """Say that it was entered, and return."""
    import ray.train

    if ray.train.get_context().get_world_rank() == 0:
        Path(told["path"]).write_text(str(time.time()))


def main(folder: Path) -> None:
    """Two ranks on a Ray of their own."""
    import ray
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    ray.init(address="local", num_cpus=2, include_dashboard=False, _temp_dir=str(folder))
    TorchTrainer(
        loop, train_loop_config={"path": str(folder / "entered")}, scaling_config=ScalingConfig(num_workers=2),
        run_config=RunConfig(name="bare", storage_path=str(folder)),
    ).fit()  # fmt: skip
    ray.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
