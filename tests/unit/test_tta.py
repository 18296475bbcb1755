"""Several views of an image: which they are, and what their mean is."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torchvision.transforms import v2

from raycnn.data.transforms import Preprocessing, eval_view
from raycnn.results.tta import tta_outputs, tta_preprocessing
from tests.support.images import pixels

SIZE = 16
PREP = Preprocessing(SIZE, 0.8, "bilinear", (0.5,) * 3, (0.2,) * 3)
SEEN = {"hflip": 2, "flips": 4, "crops": 5, "crops_hflip": 10}


def images(side: int = SIZE, number: int = 3) -> Any:
    return np.stack([pixels(n, side, side) for n in range(number)])


class Network:
    """Logits that depend on where what is; keeps what it was shown."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def __call__(self, images_NHWC: Any) -> Any:
        assert images_NHWC.shape[1:] == (SIZE, SIZE, 3)
        assert images_NHWC.flags.c_contiguous
        self.seen.append(images_NHWC)
        weights = np.random.default_rng(0).normal(size=(SIZE * SIZE * 3, 4)) / 2000
        return (images_NHWC.reshape(len(images_NHWC), -1) @ weights).astype(np.float32)


def softmax(logits_NK: Any) -> Any:
    return np.exp(logits_NK.astype(np.float64)) / np.exp(logits_NK.astype(np.float64)).sum(1, keepdims=True)


@pytest.mark.parametrize("tta", SEEN)
def test_the_probabilities_are_the_mean_over_all_views(tta: Any) -> None:
    network, given = Network(), images(tta_preprocessing(PREP, tta).image_size)
    found = tta_outputs(network, given, SIZE, tta, "single-label")
    assert len(network.seen) == SEEN[tta]
    assert len({view.tobytes() for view in network.seen}) == SEEN[tta]
    expected = np.mean([softmax(Network()(view)) for view in network.seen], axis=0)
    np.testing.assert_allclose(softmax(found), expected, rtol=1e-5)
    assert found.dtype == np.float32


@pytest.mark.parametrize("task", ["binary", "multi-label", "regression"])
def test_answers_by_themselves_have_means_of_their_own(task: str) -> None:
    network = Network()
    found = tta_outputs(network, images(), SIZE, "flips", task)
    outputs = [Network()(view).astype(float) for view in network.seen]
    if task == "regression":
        np.testing.assert_allclose(found, np.mean(outputs, axis=0), rtol=1e-5)
    else:
        expected = np.mean([1 / (1 + np.exp(-each)) for each in outputs], axis=0)
        np.testing.assert_allclose(1 / (1 + np.exp(-found.astype(float))), expected, rtol=1e-5)


def test_without_it_the_logits_are_the_networks_bit_by_bit() -> None:
    assert np.array_equal(tta_outputs(Network(), images(), SIZE, "none", "single-label"), Network()(images()))
    assert tta_preprocessing(PREP, "none") == tta_preprocessing(PREP, "flips") == PREP


def test_flips_are_flips() -> None:
    network = Network()
    tta_outputs(network, images(), SIZE, "flips", "single-label")
    for view, expected in zip(network.seen, (np.s_[:, :], np.s_[:, ::-1], np.s_[::-1], np.s_[::-1, ::-1]), strict=True):
        assert np.array_equal(view, images()[:, *expected] if isinstance(expected, tuple) else images()[:, expected])


@pytest.mark.parametrize(("fraction", "side"), [(0.8, 20), (0.5, 32), (1.0, 18)])
def test_crops_are_torchvisions_five_of_the_centre_square(fraction: float, side: int) -> None:
    wide = tta_preprocessing(replace(PREP, crop_fraction=fraction), "crops")
    assert (wide.image_size, wide.crop_fraction) == (side, 1.0)
    picture = Image.fromarray(pixels(1, 60, 45))
    square, network = eval_view(picture, wide), Network()
    tta_outputs(network, square[None], SIZE, "crops", "single-label")
    expected = v2.FiveCrop(SIZE)(Image.fromarray(square))
    for view, crop in zip(network.seen, expected, strict=True):
        assert np.array_equal(view[0], np.asarray(crop))


def test_the_middle_one_of_the_crops_is_the_evaluation_view() -> None:
    picture, network = Image.fromarray(pixels(1, 60, 60)), Network()
    tta_outputs(network, eval_view(picture, tta_preprocessing(PREP, "crops"))[None], SIZE, "crops", "single-label")
    difference = np.abs(network.seen[4][0].astype(int) - eval_view(picture, PREP))
    assert difference.max() <= 1


def test_a_sure_network_stays_finite() -> None:
    found = tta_outputs(
        lambda view: np.array([[1000.0, -1000.0]] * len(view), np.float32), images(), SIZE, "hflip", "single-label"
    )
    assert np.isfinite(found).all()
    assert found.argmax(1).tolist() == [0, 0, 0]
