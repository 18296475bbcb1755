import dataclasses
import json

import numpy as np
import numpy.typing as npt
import pytest
from cykooz_resizer import CpuExtensions
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import v2

from raycnn.config import AugmentConfig
from raycnn.data.draws import AREA, HFLIP, LEFT, NUM_DRAWS, RATIO, TOP, VFLIP
from raycnn.data.transforms import Preprocessing, _random_box, _resize, _resizer, eval_view, train_view
from tests.support.images import pixels

PREP = Preprocessing(32, 0.875, "bilinear", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
PLAIN = AugmentConfig(crop_scale=None, hflip=0, vflip=0)


def image(width: int = 60, height: int = 45) -> Image.Image:
    return Image.fromarray(pixels(1, width, height))


def draws(**named: float) -> npt.NDArray[np.float64]:
    values = np.full(NUM_DRAWS, 0.5)
    names = {"area": AREA, "ratio": RATIO, "left": LEFT, "top": TOP, "hflip": HFLIP, "vflip": VFLIP}
    for name, value in named.items():
        values[names[name]] = value
    return values


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos", "nearest"])
@pytest.mark.parametrize("size", [(60, 45), (45, 61), (300, 31), (500, 375), (20, 20)])
@pytest.mark.parametrize("fraction", [0.875, 1.0, 32 / 41])
def test_the_evaluation_view_is_torchvisions(interpolation: str, size: tuple[int, int], fraction: float) -> None:
    prep = dataclasses.replace(PREP, interpolation=interpolation, crop_fraction=fraction)
    reference = v2.Compose([v2.Resize(round(32 / fraction), v2.InterpolationMode(interpolation)), v2.CenterCrop(32)])(
        image(*size)
    )
    seen = eval_view(image(*size), prep)
    assert seen.shape == (32, 32, 3)
    assert seen.dtype == np.uint8
    difference = np.abs(seen.astype(int) - np.asarray(reference))
    # one resize instead of two steps: the fixed-point weights round differently here and there
    assert difference.max() <= 2 or (interpolation == "nearest" and difference.mean() < 3)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize("size", [(60, 45), (300, 310), (20, 20)])
def test_the_resize_is_as_near_to_the_exact_one_as_pillows(interpolation: str, size: tuple[int, int]) -> None:
    prep, picture, box = dataclasses.replace(PREP, interpolation=interpolation), image(*size), (1.3, 0.6, 18.9, 17.2)
    filter_ = Image.Resampling[interpolation.upper()]
    bands = [Image.fromarray(np.asarray(picture)[..., c].astype(np.float32)) for c in range(3)]
    exact = np.stack([np.asarray(band.resize((32, 32), filter_, box=box)) for band in bands], axis=2).clip(0, 255)
    pillows = np.asarray(picture.resize((32, 32), filter_, box=box))
    ours = np.asarray(_resize(picture, box, prep))

    def error(view: npt.NDArray[np.uint8]) -> float:
        return float(np.sqrt(((view - exact) ** 2).mean()))

    assert error(ours) <= error(pillows) + 0.03  # of the 256 levels
    assert np.abs(ours.astype(int) - pillows).max() <= 2
    assert abs((ours.astype(int) - pillows).mean()) < 0.02


def test_the_resize_is_the_same_on_every_processor() -> None:
    prep, box = dataclasses.replace(PREP, interpolation="bicubic"), (1.3, 0.6, 58.9, 43.2)
    with_vectors = np.asarray(_resize(image(), box, prep))
    resizer = _resizer()
    chosen = resizer.cpu_extensions
    try:
        resizer.cpu_extensions = CpuExtensions.none
        assert np.array_equal(np.asarray(_resize(image(), box, prep)), with_vectors)
    finally:
        resizer.cpu_extensions = chosen


def test_without_augmentation_the_training_view_is_the_evaluation_view() -> None:
    assert np.array_equal(train_view(image(), PREP, PLAIN, draws()), eval_view(image(), PREP))


def test_flips_follow_their_draws_alone() -> None:
    plain = eval_view(image(), PREP)
    augment = AugmentConfig(crop_scale=None, hflip=0.3, vflip=0.6)
    for hflip, vflip in [(0.29, 0.61), (0.31, 0.59), (0.29, 0.59), (0.31, 0.61)]:
        expected = plain[:, ::-1] if hflip < 0.3 else plain
        expected = expected[::-1] if vflip < 0.6 else expected
        assert np.array_equal(train_view(image(), PREP, augment, draws(hflip=hflip, vflip=vflip)), expected)


def test_the_box_is_what_the_draws_say() -> None:
    augment = AugmentConfig(crop_scale=(0.25, 0.25), crop_ratio=(1, 1))
    box = _random_box(image(100, 100), augment, draws(left=0.2, top=0.6))
    assert box == pytest.approx((10, 30, 60, 80))
    wide = AugmentConfig(crop_scale=(0.1, 0.5), crop_ratio=(0.5, 2))
    left, top, right, bottom = _random_box(image(100, 100), wide, draws(area=0.25, ratio=0.75))
    assert (right - left) * (bottom - top) == pytest.approx(0.2 * 10000)
    assert (right - left) / (bottom - top) == pytest.approx(2**0.5)


def test_an_image_too_narrow_gives_the_largest_box_of_the_nearest_ratio() -> None:
    left, top, right, bottom = _random_box(image(400, 20), AugmentConfig(), draws(left=0.0))
    assert (left, top, right, bottom) == pytest.approx((0, 0, 20 * 4 / 3, 20))
    left, top, right, bottom = _random_box(image(20, 400), AugmentConfig(), draws(top=0.0))
    assert (left, top, right, bottom) == pytest.approx((0, 0, 20, 20 / 0.75))


unit = st.floats(0, 1, exclude_max=True)


@settings(max_examples=300, deadline=None)
@given(
    size=st.tuples(st.integers(1, 200), st.integers(1, 200)),
    scale=st.tuples(st.floats(0.01, 1), st.floats(0.01, 1)),
    values=st.lists(unit, min_size=NUM_DRAWS, max_size=NUM_DRAWS),
)
def test_every_box_lies_in_the_image_and_keeps_its_bounds(
    size: tuple[int, int], scale: tuple[float, float], values: list[float]
) -> None:
    augment = AugmentConfig(crop_scale=(min(scale), max(scale)))
    picture = image(*size)
    left, top, right, bottom = _random_box(picture, augment, np.array(values))
    assert 0 <= left < right <= size[0]
    assert 0 <= top < bottom <= size[1]
    ratio, area = (right - left) / (bottom - top), (right - left) * (bottom - top)
    assert 0.75 * (1 - 1e-6) <= ratio <= 4 / 3 * (1 + 1e-6)
    assert area <= max(scale) * size[0] * size[1] * (1 + 1e-6)
    if 3 * max(size) <= 4 * min(size):  # some allowed ratio fits at any area
        assert area >= min(scale) * size[0] * size[1] * (1 - 1e-6)
    assert train_view(picture, PREP, augment, np.array(values)).shape == (32, 32, 3)


def test_preprocessing_survives_json() -> None:
    assert Preprocessing.from_json(json.loads(json.dumps(PREP.as_json()))) == PREP
