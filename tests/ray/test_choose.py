"""raycnn choose: several networks in one pass, the test rows untouched, a space that a search takes."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

import raycnn
from raycnn.errors import ConfigError
from raycnn.results.choice_report import render
from raycnn.searching import space
from raycnn.storage import open_store
from raycnn.training.run import create_run
from tests.support.digits import write_digits

pytestmark = pytest.mark.usefixtures("local_ray")


def test_networks_are_compared_at_all_cuts_without_the_test_rows(tmp_path: Path) -> None:
    digits = write_digits(tmp_path / "digits", each=24)
    tree = {
        "run": {"name": "run", "storage": str(tmp_path / "runs")},
        "data": {"source": str(digits), "test_fraction": 0.25, "stratify": True},
        "model": {"name": "reference/lenet", "weights": "none"},
        "train": {"workers": 2},
        "choose": {
            "networks": [
                {"name": "reference/lenet", "weights": "none"},
                {"name": "reference/digits", "weights": "none"},
            ],
            "folds": 3,
        },
    }
    config = raycnn.load_config(tree)
    path = Path(raycnn.index(config)["manifest"])
    create_run(config, open_store(f"{tmp_path}/runs/run"), path.parent.name, tuple(f"digit-{k}" for k in range(10)))
    manifest = pq.read_table(path)
    for key, split in zip(manifest["key"].to_pylist(), manifest["split"].to_pylist(), strict=True):
        if split == "test":  # whoever reads it fails
            (digits / key).write_bytes(b"")
    found = raycnn.choose(config)
    assert (found["rows"], found["unreadable"], found["folds"]) == (180, 0, 3)
    cuts = {(cut["network"], cut["depth"]): cut for cut in found["cuts"]}
    assert [depth for name, depth in cuts if name == "reference/lenet"] == [0, 1, 2, 3]
    for name in ("reference/lenet", "reference/digits"):
        own = [cut for cut in found["cuts"] if cut["network"] == name]
        assert own[0]["score"] > 0.5  # random features of digits; chance is 0.1
        assert own[-1]["features"] == 3  # the mean colour of the image
        assert own[-1]["score"] < 0.4
        times, sizes = [cut["ms"] for cut in own], [cut["trainable"] for cut in own]
        assert times == sorted(times, reverse=True)
        assert sizes == sorted(sizes)
        assert sizes[-1] == next(each for each in found["networks"] if each["network"] == name)["parameters"]
        assert all(len(cut["scores"]) == 3 for cut in own)
    assert any(cut["front"] for cut in found["cuts"])
    merged = raycnn.load_config(yaml.safe_load(found["yaml"]) | {name: tree[name] for name in ("run", "data")})
    space.check(merged)
    assert merged.model.name == found["recommended"]["network"]
    kept = open_store(f"{tmp_path}/runs/run/choose")
    assert json.loads(kept.get("result.json"))["cuts"] == found["cuts"]
    assert kept.get("cuts.png").startswith(b"\x89PNG")
    assert found["yaml"].rstrip() in render(found)


def test_a_network_without_weights_is_one_line(digits: Path, tmp_path: Path) -> None:
    tree = {
        "run": {"name": "run", "storage": str(tmp_path)},
        "data": {"source": str(digits)},
        "model": {"name": "reference/lenet"},
        "choose": {"networks": ["reference/digits"]},
    }
    with pytest.raises(ConfigError, match="reference/digits has no pretrained weights"):
        raycnn.choose(tree)
