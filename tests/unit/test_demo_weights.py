from __future__ import annotations

import hashlib
import io
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from sklearn.datasets import load_sample_images

from raycnn.data.transforms import Preprocessing, eval_view
from raycnn.demo import data, weights
from raycnn.errors import CheckpointError, DataError, StorageError
from raycnn.storage import open_store


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package index that is a folder, with a small wheel of the data set's form and name."""
    folder = tmp_path / "index"
    folder.mkdir()
    _make_wheel(
        folder / data.ELPV.wheel,
        "images/a.png 1.0 mono\nimages/b.png  0.3333333333333333 poly\nimages/c.png 0.0 mono\n",
    )
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    digest = hashlib.sha256((folder / data.ELPV.wheel).read_bytes()).hexdigest()
    monkeypatch.setattr(data, "ELPV", replace(data.ELPV, sha256=digest))
    return folder


def _make_wheel(path: Path, labels: str) -> None:
    info = "elpv_dataset-1.0.0.post1.dist-info"
    with zipfile.ZipFile(path, "w") as wheel:
        for number, name in enumerate("abc"):
            png = io.BytesIO()
            Image.new("L", (4, 4), number).save(png, "PNG")
            wheel.writestr(f"elpv_dataset/data/images/{name}.png", png.getvalue())
        wheel.writestr("elpv_dataset/data/labels.csv", labels)
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: elpv-dataset\nVersion: 1.0.0.post1\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")


def test_cells_become_a_tree_of_class_folders(index: Path, tmp_path: Path) -> None:
    wheel = data.fetch(tmp_path / "cache")
    store = open_store(str(tmp_path / "bucket"))
    assert data.upload(wheel, store) == 3
    assert [entry.key for entry in store.list()] == ["defective/a.png", "ok/b.png", "ok/c.png"]
    with Image.open(io.BytesIO(store.get("ok/c.png"))) as image:
        assert image.getpixel((0, 0)) == 2


def test_a_cached_wheel_is_fetched_again_only_when_it_changed(index: Path, tmp_path: Path) -> None:
    wheel = data.fetch(tmp_path)
    good = wheel.read_bytes()
    wheel.write_bytes(good[:-10])
    assert data.fetch(tmp_path).read_bytes() == good
    (index / data.ELPV.wheel).unlink()
    assert data.fetch(tmp_path) == wheel


def test_another_wheel_of_that_name_is_refused(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "ELPV", replace(data.ELPV, sha256="0" * 64))
    with pytest.raises(StorageError, match="not the expected file"):
        data.fetch(tmp_path)


def test_an_index_without_it_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    with pytest.raises(StorageError, match=r"elpv-dataset==1\.0\.0\.post1") as caught:
        data.fetch(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_label_of_another_form_is_named(tmp_path: Path) -> None:
    wheel = tmp_path / data.ELPV.wheel
    _make_wheel(wheel, "images/a.png 1.0 mono\nimages/b.png mono\n")
    with pytest.raises(DataError, match="line 2"):
        list(data.cells(wheel))


def test_weights_load_strictly_and_know_a_palace_and_a_daisy() -> None:
    state = weights.lite0_weights()
    network = timm.create_model(weights.NETWORK)
    network.load_state_dict(state, strict=True)
    assert len(state) == 296
    config = network.pretrained_cfg
    assert (config["mean"], config["std"]) == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    prep = Preprocessing(224, config["crop_pct"], config["interpolation"], config["mean"], config["std"])
    photos = [eval_view(Image.fromarray(photo), prep) for photo in load_sample_images().images]
    images_NHWC = torch.from_numpy(np.stack(photos)) / 127.5 - 1
    with torch.no_grad():
        probabilities_NK = network.eval()(images_NHWC.permute(0, 3, 1, 2)).softmax(1)
    assert probabilities_NK.argmax(1).tolist() == [698, 985]  # the Summer Palace, a flower: palace and daisy
    assert probabilities_NK.max(1).values.min() > 0.25  # another padding or normalisation is less sure


def test_another_file_is_refused(tmp_path: Path) -> None:
    other = tmp_path / "other.pth"
    torch.save({}, other)
    with pytest.raises(CheckpointError, match="sha256"):
        weights.lite0_weights(other)
    with pytest.raises(StorageError, match="cannot read the weights"):
        weights.lite0_weights(tmp_path / "none.pth")


@pytest.mark.parametrize(
    "source",
    [
        {"a.weight": torch.zeros(2, 3)},
        {"a.weight": torch.zeros(3, 2), "a.bias": torch.zeros(2)},
        {"a.bias": torch.zeros(2, 3), "a.weight": torch.zeros(2)},
    ],
    ids=["too few", "another shape", "another suffix"],
)
def test_tensors_that_do_not_pair_are_refused(source: dict[str, torch.Tensor]) -> None:
    target = {"b.weight": torch.zeros(2, 3), "b.bias": torch.zeros(2)}
    with pytest.raises(CheckpointError, match="another network"):
        weights.rename(source, target)


def test_pairs_keep_their_order() -> None:
    source = {"a.weight": torch.ones(2), "z.weight": torch.zeros(2)}
    renamed = weights.rename(source, {"y.weight": torch.empty(2), "b.weight": torch.empty(2)})
    assert [(name, tensor[0].item()) for name, tensor in renamed.items()] == [
        ("y.weight", 1),
        ("b.weight", 0),
    ]
