"""python -m tests.bench.plain_ray CASE: the trials of the search as Ray's own guides write them.

read_images and map; a Tune function that builds a TorchTrainer with TuneReportCallback, see
https://docs.ray.io/en/latest/train/user-guides/hyperparameter-optimization.html. Only the network with its weights, the
split of the rows and the names of what is unfrozen come from raycnn.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torchvision.transforms import v2

from raycnn.cluster import available_cpus
from raycnn.models.stages import find
from raycnn.models.zoo import preprocessing
from tests.bench.case import DEPTHS, LEARNING_RATES, Case


def train_worker(settings: dict[str, Any]) -> None:
    """The whole network at each step; what is frozen has no gradients and keeps its statistics."""
    import ray.train
    import ray.train.torch

    case = Case.read(Path(settings["case"]))
    config, loss_of = case.config, nn.CrossEntropyLoss(label_smoothing=case.config.loss.label_smoothing)
    network = case.network()
    stages = find(network)
    names = {name for name, _ in stages.suffix(settings["depth"]).named_parameters()}
    for name, parameter in network.module.named_parameters():
        parameter.requires_grad = name in names
    model = ray.train.torch.prepare_model(network.module)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=settings["lr"], weight_decay=config.optim.weight_decay)
    epochs, batch_size = int(config.train.epochs), config.train.global_batch
    steps = -(-len(case.index.rows("train")) // batch_size) * epochs
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(epochs):
        model.train()
        for layer in model.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.eval()
        for batch in ray.train.get_dataset_shard("train").iter_torch_batches(batch_size=batch_size):
            optimizer.zero_grad()
            loss_of(model(batch["image"]), batch["label"]).backward()
            optimizer.step()
            schedule.step()
        metrics = evaluate(model, ray.train.get_dataset_shard("val").iter_torch_batches(batch_size=batch_size))
        with tempfile.TemporaryDirectory() as folder:
            torch.save(model.state_dict(), Path(folder) / "model.pt")
            ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder))


def evaluate(model: nn.Module, batches: Any) -> dict[str, float]:
    model.eval()
    loss, right, rows = 0.0, 0, 0
    with torch.no_grad():
        for batch in batches:
            logits_NK, labels_N = model(batch["image"]), batch["label"]
            loss += float(F.cross_entropy(logits_NK, labels_N, reduction="sum"))
            right += int((logits_NK.argmax(dim=1) == labels_N).sum())
            rows += len(labels_N)
    return {"loss": loss / rows, "accuracy": right / rows}


def dataset(case: Case, split: str) -> Any:
    """float32 images and labels of a split, decoded by Ray Data again in every epoch."""
    import ray

    size, augment, prep = case.config.data.image_size, case.config.augment, preprocessing(case.config.model.name)
    assert size is not None
    assert augment.crop_scale is not None
    views = {
        "train": [
            v2.RandomResizedCrop(size, augment.crop_scale, augment.crop_ratio),
            v2.RandomHorizontalFlip(augment.hflip),
            v2.RandomVerticalFlip(augment.vflip),
        ],
        "val": [v2.Resize(round(size / prep.crop_fraction)), v2.CenterCrop(size)],
    }
    transform = v2.Compose(
        [v2.ToImage(), *views[split], v2.ToDtype(torch.float32, scale=True), v2.Normalize(prep.mean, prep.std)]
    )
    classes = case.index.classes

    def prepared(row: dict[str, Any]) -> dict[str, Any]:
        return {"image": transform(row["image"]).numpy(), "label": classes.index(Path(row["path"]).parent.name)}

    paths = [f"{case.config.data.source}/{key}" for key in case.index.rows(split)["key"].to_pylist()]
    shuffle = "files" if split == "train" else None
    return ray.data.read_images(paths, mode="RGB", include_paths=True, shuffle=shuffle).map(prepared)


def train_driver(config: dict[str, Any]) -> None:
    import ray.train
    import ray.tune
    from ray.train.torch import TorchTrainer
    from ray.tune.integration.ray_train import TuneReportCallback

    start = time.perf_counter()
    settings, case, name = (
        config["trial"],
        Case.read(Path(config["trial"]["case"])),
        ray.tune.get_context().get_trial_id(),
    )
    TorchTrainer(
        train_worker,
        train_loop_config=settings,
        scaling_config=ray.train.ScalingConfig(num_workers=1),
        datasets={split: dataset(case, split) for split in ("train", "val")},
        run_config=ray.train.RunConfig(
            name=f"train-{name}", storage_path=settings["folder"], callbacks=[TuneReportCallback()]
        ),
    ).fit()
    seconds = {"lr": settings["lr"], "depth": settings["depth"], "seconds": time.perf_counter() - start}
    (Path(settings["folder"]) / f"{name}.json").write_text(json.dumps(seconds))


def tune_all(case: Path, lrs: list[float], folder: str) -> dict[str, Any]:
    """As many trials at once as there are CPUs, each with one for its rank and one for Ray Data."""
    import ray
    import ray.tune

    concurrent = available_cpus()
    ray.init(address="local", num_cpus=2 * concurrent, include_dashboard=False, log_to_driver=False)
    pairs = [{"depth": depth, "lr": lr, "case": str(case), "folder": folder} for depth in DEPTHS for lr in lrs]
    start = time.perf_counter()
    results = ray.tune.Tuner(
        # less than the CPU that Tune takes by default: all that a driver does is wait
        ray.tune.with_resources(train_driver, {"CPU": 0.01}),
        param_space={"trial": ray.tune.grid_search(pairs)},
        tune_config=ray.tune.TuneConfig(max_concurrent_trials=concurrent),
        run_config=ray.tune.RunConfig(name="tune", storage_path=folder, verbose=0),
    ).fit()
    fit = time.perf_counter() - start
    seconds = {(each["lr"], each["depth"]): each["seconds"] for each in map(json.loads, texts(folder))}
    trials = []
    for result in results:
        lr, depth = (result.config["trial"][name] for name in ("lr", "depth"))
        accuracy, loss = result.metrics_dataframe["accuracy"].max(), result.metrics["loss"]
        trials.append(
            {"lr": lr, "depth": depth, "seconds": seconds[lr, depth], "accuracy": float(accuracy), "loss": loss}
        )
    return {"fit": fit, "concurrent": concurrent, "trials": trials}


def texts(folder: str) -> list[str]:
    return [path.read_text() for path in Path(folder).glob("*.json")]


def main() -> None:
    """Prints {fit: s, concurrent, trials: [{lr, depth, seconds, accuracy, loss}]} as JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("case", type=Path)
    parser.add_argument("--lrs", type=float, nargs="+", default=LEARNING_RATES)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="raycnn-bench-tune-") as folder:
        print(json.dumps(tune_all(options.case.absolute(), options.lrs, folder)))


if __name__ == "__main__":
    # what __main__ defines travels by value, and with it torch.classes, which cannot; a module travels by name
    from tests.bench.plain_ray import main as named

    named()
