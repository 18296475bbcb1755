"""Distortions are torchvision's, drawn by the row alone."""

from __future__ import annotations

from collections import Counter

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as tv
from torchvision.transforms.autoaugment import RandAugment, TrivialAugmentWide, _apply_op

from raycnn.config import AugmentConfig
from raycnn.data.distort import OPS, _apply, distorted, policy
from raycnn.data.draws import (
    BRIGHTNESS,
    CONTRAST,
    HUE,
    JITTER_ORDER,
    MAGNITUDE,
    NUM_DRAWS,
    OP,
    POLICY,
    POLICY_DRAWS,
    ROTATE,
    SATURATION,
    SIGN,
)
from raycnn.data.keyed import uniforms
from tests.support.images import pixels

FILL = (124, 116, 104)
PLAIN = AugmentConfig(crop_scale=None, hflip=0)


def image() -> Image.Image:
    return Image.fromarray(pixels(4, 40, 40) // 2 + 40)


def augment(**settings: object) -> AugmentConfig:
    return AugmentConfig.model_validate({"crop_scale": None, "hflip": 0, **settings})


def draws(**at: float) -> npt.NDArray[np.float64]:
    values = np.full(NUM_DRAWS, 0.5)
    for name, value in at.items():
        values[int(name[1:])] = value
    return values


def many(number: int) -> npt.NDArray[np.float64]:
    return uniforms(1, np.zeros(number, np.int64), np.arange(number, dtype=np.uint64), NUM_DRAWS)


def assert_equal(one: Image.Image, other: Image.Image) -> None:
    assert np.array_equal(np.asarray(one), np.asarray(other))


@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize("sign", [1, -1])
def test_each_distortion_is_torchvisions(name: str, sign: int) -> None:
    value = {"Shear": 0.2, "Trans": 7.9, "Rotat": 25.0, "Poste": 4, "Solar": 100}.get(name[:5], 0.4)
    value = value if name in ("Posterize", "Solarize") else sign * value
    theirs = _apply_op(image(), name, value, InterpolationMode.BILINEAR, list(map(float, FILL)))
    ours = _apply(image(), name, value, FILL)
    if name.startswith("Shear"):  # torchvision turns the tangent into degrees and back
        assert np.abs(np.asarray(ours).astype(int) - np.asarray(theirs)).max() <= 1
    else:
        assert_equal(ours, theirs)
    assert (name == "Identity") == np.array_equal(np.asarray(ours), np.asarray(image()))


@pytest.mark.parametrize("name", ["randaugment", "trivialaugment"])
def test_the_ranges_are_torchvisions(name: str) -> None:
    wide = name == "trivialaugment"
    theirs = TrivialAugmentWide()._augmentation_space(31) if wide else RandAugment()._augmentation_space(31, (40, 40))
    assert tuple(theirs) == OPS
    for number, op in enumerate(OPS):
        for strength in (0, 9, 17, 30):
            row = draws(
                **{f"_{POLICY + OP}": (number + 0.5) / 14, f"_{POLICY + MAGNITUDE}": (strength + 0.5) / 31},
                **{f"_{POLICY + SIGN}": 0.7},
            )
            setting = augment(policy=name, policy_ops=1, policy_magnitude=strength)
            ((found, value),) = policy(setting, row, 40)
            magnitudes, signed = theirs[op]
            assert found == op
            if op not in ("Identity", "AutoContrast", "Equalize"):
                assert value == pytest.approx(float(magnitudes[strength]), abs=1e-4)
            row[POLICY + SIGN] = 0.2
            ((_, other),) = policy(setting, row, 40)
            assert other == (-value if signed else value)


def test_every_distortion_comes_equally_often_and_both_ways() -> None:
    found = [policy(augment(policy="randaugment", policy_ops=3), row, 224) for row in many(4200)]
    assert {len(each) for each in found} == {3}
    for place in range(3):
        counts = Counter(each[place][0] for each in found)
        assert set(counts) == set(OPS)
        assert all(210 < count < 390 for count in counts.values())
    angles = [value for each in found for name, value in each if name == "Rotate"]
    assert set(np.abs(angles)) == {9.0}
    assert 0.4 < np.mean(np.array(angles) > 0) < 0.6
    first, second = ([OPS.index(each[place][0]) for each in found] for place in (0, 1))
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.05


def test_trivialaugment_draws_every_strength() -> None:
    found = [policy(augment(policy="trivialaugment"), row, 224) for row in many(6000)]
    assert {len(each) for each in found} == {1}
    angles = {round(abs(value), 2) for ((name, value),) in found if name == "Rotate"}
    assert angles == {round(4.5 * strength, 2) for strength in range(31)}


def test_a_rotation_is_uniform_over_its_range() -> None:
    setting = augment(rotate=30)
    expected = image().rotate(15, Image.Resampling.BILINEAR, fillcolor=FILL)
    assert_equal(distorted(image(), setting, FILL, draws(**{f"_{ROTATE}": 0.75})), expected)
    assert_equal(distorted(image(), setting, FILL, draws()), image())
    corner = np.asarray(distorted(image(), augment(rotate=45), FILL, draws(**{f"_{ROTATE}": 0.0})))[0, 0]
    assert tuple(corner) == FILL


def test_colour_jitter_is_torchvisions_in_the_order_that_is_drawn() -> None:
    setting = augment(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1)
    row = draws(**{f"_{BRIGHTNESS}": 0.9, f"_{CONTRAST}": 0.2, f"_{SATURATION}": 0.8, f"_{HUE}": 0.75})
    steps = [
        lambda view: tv.adjust_brightness(view, 1.32), lambda view: tv.adjust_contrast(view, 0.76),
        lambda view: tv.adjust_saturation(view, 1.24), lambda view: tv.adjust_hue(view, 0.05),
    ]  # fmt: skip
    results = []
    for drawn, order in ((0.0, (0, 1, 2, 3)), (0.999, (3, 2, 1, 0)), (7 / 24 + 0.01, (1, 0, 3, 2))):
        row[JITTER_ORDER] = drawn
        expected = image()
        for which in order:
            expected = steps[which](expected)
        results.append(np.asarray(distorted(image(), setting, FILL, row)))
        assert np.array_equal(results[-1], np.asarray(expected))
    assert not np.array_equal(results[0], results[1])


def test_a_factor_is_uniform_around_one() -> None:
    for drawn, factor in ((0.0, 0.6), (0.5, 1.0), (1.0, 1.4)):
        view = distorted(image(), augment(contrast=0.4), FILL, draws(**{f"_{CONTRAST}": drawn}))
        assert_equal(view, tv.adjust_contrast(image(), factor))


def test_without_settings_nothing_happens() -> None:
    assert_equal(distorted(image(), PLAIN, FILL, many(1)[0]), image())
    assert POLICY + 4 * POLICY_DRAWS <= NUM_DRAWS
