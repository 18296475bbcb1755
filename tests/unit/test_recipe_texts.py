"""What a recipe tells its reader: what it is, the commands, the result."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest
import yaml

from raycnn.config import load_config
from raycnn.demo.inputs import INPUTS, patches

RECIPES = Path(__file__).parents[2] / "jobs" / "recipes"


def with_parents(name: str) -> str:
    """A recipe's text, and that of those before it."""
    text = (RECIPES / f"{name}.yaml").read_text()
    parent = re.search(r'weights: "run:([\w-]+)"', text)
    if parent is None:
        return text
    assert f"# after {parent[1]}.yaml" in text
    return text + with_parents(parent[1])


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_recipe_says_its_commands_and_its_result(path: Path) -> None:
    text = path.read_text()
    tree = yaml.safe_load(text)
    assert load_config(tree).run.name == path.stem
    assert "# Expected" in text
    if path.stem != "solar":  # that one is the demo's
        verb = "search" if "search" in tree else "train"
        assert f"#   raycnn {verb} jobs/recipes/{path.name}" in text
    written = " ".join(re.findall(r"python -m raycnn\.demo\.inputs ((?:\w+ ?)+)", with_parents(path.stem))).split()
    assert {name for name in INPUTS if f"demo-output/{name}" in text} <= set(written)


def test_the_patches_lie_side_by_side_in_ten_nearly_even_classes() -> None:
    found = dict(patches())
    counts = Counter(key.split("/")[0] for key in found)
    assert len(found) == sum(counts.values()) == 520
    assert len(counts) == 10
    assert set(counts.values()) == {40, 60}
    assert len(set(found.values())) > 500
