from __future__ import annotations

import io
import math
from typing import Any

import pytest
from PIL import Image

from raycnn.searching import pictures
from raycnn.searching.pictures import available, heat_map, learning_curves
from raycnn.searching.records import Evaluation, TrialRecord

pytest.importorskip("matplotlib")


def trial(id: str, accuracies: list[float | None], lr: float = 0.01, depth: str = "0", **kept: Any) -> TrialRecord:
    evaluations = tuple(Evaluation(i, i / 2, 1.0, {"accuracy": value}) for i, value in enumerate(accuracies, 1))
    return TrialRecord(id, {"optim.lr": lr}, depth, **{"status": "finished"} | kept, evaluations=evaluations)


GRID = [
    trial("0000", [0.5, 0.6], 0.1, "0"),
    trial("0001", [0.7, None, 0.8], 0.1, "all"),
    trial("0002", [0.4], 0.01, "0", status="stopped"),
    trial("0003", [math.nan], 0.01, "all", status="failed"),
    trial("0004", [0.65], 0.1, "0"),
]


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    drawn: list[Any] = []
    monkeypatch.setattr(pictures, "_png", lambda figure: drawn.append(figure) or b"")
    return drawn


def size(png: bytes | None) -> tuple[int, int]:
    image = Image.open(io.BytesIO(png or b""))
    assert image.format == "PNG"
    colours = image.convert("RGB").getcolors(1 << 24) or []
    assert len(colours) > 50  # something was drawn
    return image.size


@pytest.mark.parametrize("num_trials", [1, 3, 60])
def test_the_pictures_are_pngs(num_trials: int) -> None:
    records = [trial(f"{i:04d}", [0.1 + i / 100, 0.2], 10 ** (-i / 15), str(i % 3)) for i in range(num_trials)]
    width, height = size(learning_curves(records, "accuracy", "max"))
    assert 1000 < width < 1600
    assert 500 < height < 1000
    if num_trials > 1:
        width, height = size(heat_map(records, "accuracy", "max"))
        assert 400 < width < 2500
        assert 300 < height < 1000


def test_every_trial_has_a_line_and_its_end_a_mark(figures: list[Any]) -> None:
    learning_curves(GRID, "accuracy", "max")
    (axes,) = figures[0].axes
    lines = [line for line in axes.lines if line.get_marker() == "o"]
    assert [(list(line.get_xdata()), list(line.get_ydata())) for line in lines] == [
        ([0.5, 1.0], [0.5, 0.6]),
        ([0.5, 1.5], [0.7, 0.8]),  # what has no value leaves no point
        ([0.5], [0.4]),
        ([], []),
        ([0.5], [0.65]),
    ]
    (stopped,) = (line for line in axes.lines if line.get_marker() == "X")
    assert (list(stopped.get_xdata()), list(stopped.get_ydata())) == ([0.5], [0.4])
    colours = [line.get_color() for line in lines]
    assert colours[0] == colours[2] == colours[4] != colours[1] == colours[3]
    assert [line.get_linestyle() for line in lines] == ["-", "-", "-", "--", "-"]
    assert max(range(5), key=lambda i: lines[i].get_linewidth()) == 1
    (legend,) = figures[0].legends
    labels = [text.get_text() for text in legend.get_texts()]
    assert labels == ["depth 0", "depth all", "best: 0001", "1 stopped", "1 failed: 0003"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("epochs", "validation accuracy")


def test_a_loss_that_ran_away_leaves_the_frame_and_is_counted(figures: list[Any]) -> None:
    records = [trial(f"{i}", [1.0, 0.5 + i / 10, 0.4]) for i in range(5)] + [trial("9", [1e6, 2e6])]
    learning_curves(records, "accuracy", "min")
    (axes,) = figures[0].axes
    assert axes.get_title("left") == "6 trials (1 leave the frame)"
    assert axes.get_ylim()[1] < 3
    learning_curves(records[:5], "accuracy", "min")
    assert figures[1].axes[0].get_title("left") == "5 trials"
    assert figures[1].axes[0].get_ylim()[1] > 1


def test_many_failures_are_named_in_part(figures: list[Any]) -> None:
    learning_curves(
        [trial("x", [0.5]), *(trial(f"{i:04d}", [], status="failed") for i in range(30))], "accuracy", "max"
    )
    label = figures[0].legends[0].get_texts()[-1].get_text().replace("\n", " ")
    assert label == "30 failed: " + ", ".join(f"{i:04d}" for i in range(10)) + ", …"


def test_cells_hold_the_best_and_the_number_of_trials(figures: list[Any]) -> None:
    heat_map(GRID, "accuracy", "max")
    axes = figures[0].axes[0]
    cells = {text.get_position(): text.get_text() for text in axes.texts}
    assert cells == {
        (0, 0): "0.400\n1 trial",
        (1, 0): "0.650\n2 trials",
        (0, 1): "1 failed",
        (1, 1): "0.800\n1 trial",
    }
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0.01", "0.1"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["0", "all"]
    heat_map(GRID, "accuracy", "min")
    assert figures[1].axes[0].texts[1].get_text() == "0.500\n2 trials"
    brightness = [[sum(figure.axes[0].images[0].cmap(place)[:3]) for place in (0.0, 1.0)] for figure in figures]
    assert brightness[0][1] > brightness[0][0]  # the better the brighter
    assert brightness[1][1] < brightness[1][0]


def test_no_picture_where_there_is_nothing_to_draw() -> None:
    assert heat_map([record for record in GRID if record.depth == "0"], "accuracy", "max") is None
    assert heat_map([trial("0", [None], depth="0"), trial("1", [], depth="1")], "accuracy", "max") is None
    bare = [TrialRecord(str(i), {}, str(i), "finished", GRID[0].evaluations) for i in range(2)]
    assert heat_map(bare, "accuracy", "max") is None
    assert learning_curves([trial("0", [None]), trial("1", [])], "accuracy", "max") is None
    assert learning_curves([], "accuracy", "max") is None


def test_no_picture_without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    assert available()
    monkeypatch.setattr(pictures.importlib.util, "find_spec", lambda name: None)
    assert not available()
    assert learning_curves(GRID, "accuracy", "max") is None
    assert heat_map(GRID, "accuracy", "max") is None


def test_equal_values_are_drawn_too() -> None:
    records = [trial(str(i), [0.5], depth=str(i)) for i in range(2)]
    assert size(learning_curves(records, "accuracy", "max"))
    assert size(heat_map(records, "accuracy", "max"))
