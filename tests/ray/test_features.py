"""raycnn features: every row of the run once, the same bits on any number of workers, before and after training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

import raycnn
from raycnn.data.decode import Limits, decode
from raycnn.data.transforms import eval_view
from raycnn.errors import ConfigError
from raycnn.models.stages import find
from raycnn.models.zoo import build
from raycnn.training.device import Normalize

pytestmark = pytest.mark.usefixtures("local_ray")


def settings(source: Path, storage: Path, **changes: Any) -> raycnn.Config:
    config = {
        "run": {"name": "run", "storage": str(storage)},
        "data": {"source": str(source), "val_fraction": 0.2, "test_fraction": 0.2, "stratify": True},
        "model": {"name": "reference/lenet", "weights": "none"},
        "optim": {"lr": 0.005},
        "train": {"epochs": 2, "global_batch": 96, "chunk": 16},
        "features": {"cuts": [0, 1, "all"]},
    }
    return raycnn.load_config(config, changes)


def values(table: Any, column: str) -> np.ndarray:
    return np.array([row for row in table[column].to_pylist() if row is not None], np.float32)


def test_features_of_the_starting_weights_are_those_of_the_prefix(digits: Path, tmp_path: Path) -> None:
    config = settings(digits, tmp_path)
    told = raycnn.features(config)
    table = pq.read_table(told["output"])
    assert told["rows"] == table.num_rows == 400
    assert told["weights"] == "start"
    assert table.column_names == ["key", "label", "split", "features_0", "features_1", "features_3", "reason"]
    assert table["label"].to_pylist() == [key.split("/")[0] for key in table["key"].to_pylist()]
    assert {split: table["split"].to_pylist().count(split) for split in ("train", "val", "test")} == {
        "train": 240,
        "val": 80,
        "test": 80,
    }
    network = build("reference/lenet", 10, seed=raycnn.data.keyed.derive_seed(0, "init"))
    keys = table["key"].to_pylist()[:3]
    images = [decode((digits / key).read_bytes(), Limits(10**6, 10**6)) for key in keys]
    views = torch.from_numpy(np.stack([eval_view(image, network.preprocessing) for image in images]))
    inputs = Normalize(network.preprocessing)(views)
    with torch.no_grad():
        for depth, places in ((0, None), (1, (2, 3)), (3, (2, 3))):
            prefix = find(network).split(depth).prefix
            expected = inputs if prefix is None else prefix.eval()(inputs)
            expected = expected.flatten(1) if places is None else expected.mean(places)
            np.testing.assert_allclose(values(table, f"features_{depth}")[:3], expected, rtol=1e-4, atol=1e-5)


def test_a_folder_without_labels_has_rows_of_its_own_and_bad_images_are_counted(digits: Path, tmp_path: Path) -> None:
    folder = tmp_path / "new"
    folder.mkdir()
    for number in range(20):
        (folder / f"{number:02}.png").write_bytes((digits / f"digit-3/{number:03}.png").read_bytes())
    (folder / "07.png").write_bytes(b"no image")
    output = tmp_path / "elsewhere" / "new.parquet"
    changes = {"features.source": str(folder), "features.output": str(output), "features.cuts": [1]}
    told = raycnn.features(settings(digits, tmp_path, **changes))
    table = pq.read_table(output)
    assert (told["rows"], told["unreadable"]) == (20, 1)
    assert table["label"].null_count == table["split"].null_count == 20
    assert table["reason"].to_pylist() == [*[None] * 7, "not an image", *[None] * 12]
    assert table["features_1"].null_count == 1


def test_a_cut_that_is_not_there_is_one_line(digits: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"reference/lenet has 3 stages \(cut 7\)"):
        raycnn.features(settings(digits, tmp_path, **{"features.cuts": [7]}))


@pytest.mark.slow
def test_features_of_a_checkpoint_have_the_same_bits_on_any_number_of_workers(digits: Path, tmp_path: Path) -> None:
    config = settings(digits, tmp_path)
    trained = raycnn.train(config)
    found = []
    for workers in (1, 2, 3):
        changes: dict[str, Any] = {"train.workers": workers, "train.global_batch": 96}
        told = raycnn.features(
            raycnn.load_config(config, {**changes, "features.output": f"{tmp_path}/{workers}.parquet"})
        )
        assert told["weights"] == f"step-{trained['best']['step']:08d}"
        found.append(pq.read_table(told["output"]))
    assert found[0].equals(found[1])
    assert found[0].equals(found[2])
    # what goes into the head, through the head, is what predict says
    network = raycnn.load(f"{tmp_path}/run").network
    logits_NK = find_head(network)(torch.from_numpy(values(found[0], "features_0")))
    predicted = pq.read_table(raycnn.predict(config)["output"])
    by_key = dict(zip(found[0]["key"].to_pylist(), logits_NK.argmax(1).tolist(), strict=True))
    classes = raycnn.load(f"{tmp_path}/run").classes
    assert [classes[by_key[key]] for key in predicted["key"].to_pylist()] == predicted["label"].to_pylist()


def find_head(module: torch.nn.Module) -> torch.nn.Module:
    network = build("reference/lenet", 10, seed=0)
    network.module.load_state_dict(module.state_dict())
    return find(network).suffix(0).eval()
