"""The recipes of jobs/recipes on the data that they name: each comes to the result that it says it expects.

Those that need a package index, or minutes, are `slow`: make test-recipes.
"""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

import raycnn
from raycnn.cluster import connect
from raycnn.config import Config, load_config
from raycnn.demo.__main__ import RECIPES
from raycnn.storage import open_store
from tests.support.recipes import config_of_recipe
from tests.support.runs import metrics

EXPECTED = re.compile(r"Expected: test accuracy (\d\.\d+), within (\d\.\d+)")
QUICK = ("ten-classes",)


def recipes() -> dict[str, str]:
    """Text by name of those that name their result."""
    texts = {path.stem: path.read_text() for path in sorted(RECIPES.glob("*.yaml"))}
    return {name: text for name, text in texts.items() if EXPECTED.search(text)}


@dataclass
class Kitchen:
    """What the recipes read and write, below one folder; each is cooked once, after those it starts from."""

    folder: Path
    done: dict[str, Any] = field(default_factory=dict)

    def config(self, name: str) -> Config:
        """A recipe's, in the folder in place of demo-output."""
        return config_of_recipe(RECIPES / f"{name}.yaml", self.folder)

    def cook(self, name: str) -> Any:
        """The evaluation of a recipe on its test split."""
        if name not in self.done:
            config = self.config(name)
            if config.model.weights.startswith("run:"):
                self.cook(config.model.weights.removeprefix("run:"))
            raycnn.train(config)
            self.done[name] = raycnn.evaluate(config)
        return self.done[name]


@pytest.fixture(scope="module")
def kitchen(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with connect():
        yield Kitchen(tmp_path_factory.mktemp("recipes"))


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in recipes()])
def test_a_recipe_comes_to_its_expected_result(name: str, kitchen: Kitchen) -> None:
    accuracy, within = map(float, EXPECTED.search(recipes()[name]).groups())
    assert kitchen.cook(name)["metrics"]["accuracy"] == pytest.approx(accuracy, abs=within)


@pytest.mark.slow
def test_vgg_16_takes_a_few_steps_without_weights(kitchen: Kitchen) -> None:
    config = kitchen.config("frozen-vgg16")
    few = kitchen.folder / "few"
    for cell in (c for kind in ("ok", "defective") for c in sorted((kitchen.folder / "cells" / kind).iterdir())[:40]):
        (few / cell.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copy(cell, few / cell.parent.name)
    changes = {"model.weights": "none", "data.source": str(few), "data.image_size": 64, "train.epochs": 2}
    trained = raycnn.train(load_config(config, changes))
    assert trained["status"] == "finished"
    assert trained["steps"] == 6
    network = raycnn.load(f"{config.run.storage}/{config.run.name}")
    layers = dict(network.network.classifier.named_children())
    assert list(layers) == ["flatten", "hidden", "relu", "output"]
    assert [tuple(layers[name].weight.shape) for name in ("hidden", "output")] == [(256, 25088), (1, 256)]


def test_ten_classes_are_validated_each_epoch_and_the_network_says_the_same_when_it_is_loaded(kitchen: Kitchen) -> None:
    config, evaluation = kitchen.config("ten-classes"), kitchen.cook("ten-classes")
    folder = f"{config.run.storage}/{config.run.name}"
    validated = [line["step"] for line in metrics(open_store(folder)) if "val_accuracy" in line]
    assert len(validated) == config.train.epochs
    predicted = pq.read_table(raycnn.predict(config)["output"]).to_pydict()
    network = raycnn.load(folder)
    answers = [network.predict(Path(config.data.source) / key) for key in predicted["key"]]
    labels = [max(answer, key=answer.__getitem__) for answer in answers]
    assert labels == predicted["label"]
    right = [key.split("/")[0] == label for key, label in zip(predicted["key"], labels, strict=True)]
    assert sum(right) / len(right) == pytest.approx(evaluation["metrics"]["accuracy"])
