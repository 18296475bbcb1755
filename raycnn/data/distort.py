"""Random distortions of a view: rotation, RandAugment, TrivialAugment, colour jitter; on Pillow images, without torch.

The 14 distortions, their order and their ranges are torchvision's, which are those of the papers: Cubuk et al.,
"RandAugment", 2020; Mueller and Hutter, "TrivialAugment", 2021 (wide).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import permutations
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageEnhance, ImageOps

from raycnn.config import AugmentConfig
from raycnn.data.draws import (
    BRIGHTNESS,
    CONTRAST,
    HUE,
    JITTER_ORDER,
    MAGNITUDE,
    OP,
    POLICY,
    POLICY_DRAWS,
    ROTATE,
    SATURATION,
    SIGN,
)

Floats = npt.NDArray[np.float64]
Fill = tuple[int, ...]
"""The colour of what comes in from outside of the view."""

OPS: Final = (
    "Identity", "ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "Brightness", "Color", "Contrast",
    "Sharpness", "Posterize", "Solarize", "AutoContrast", "Equalize",
)  # fmt: skip
_SIGNED: Final = frozenset(OPS[1:10])
_STRENGTHS: Final = 30
_ENHANCERS: Final[dict[str, Callable[[Image.Image], ImageEnhance._Enhance]]] = {
    "Brightness": ImageEnhance.Brightness,
    "Color": ImageEnhance.Color,
    "Contrast": ImageEnhance.Contrast,
    "Sharpness": ImageEnhance.Sharpness,
}
_JITTERS: Final = ((BRIGHTNESS, "Brightness"), (CONTRAST, "Contrast"), (SATURATION, "Color"), (HUE, "Hue"))
_ORDERS: Final = tuple(permutations(range(len(_JITTERS))))


def distorted(view: Image.Image, augment: AugmentConfig, fill: Fill, draws: Floats) -> Image.Image:
    """The view rotated, distorted by the policy, and with other colours, as its draws say."""
    if augment.rotate:
        view = _apply(view, "Rotate", (2 * draws[ROTATE] - 1) * augment.rotate, fill)
    for name, value in policy(augment, draws, view.width):
        view = _apply(view, name, value, fill)
    return _jittered(view, augment, draws)


def policy(augment: AugmentConfig, draws: Floats, side: int) -> list[tuple[str, float]]:
    """The distortions of one view, and the value of each: of `OPS`, see `_value`."""
    wide = augment.policy == "trivialaugment"
    number = {"none": 0, "trivialaugment": 1, "randaugment": augment.policy_ops}[augment.policy]
    found = []
    for first in range(POLICY, POLICY + number * POLICY_DRAWS, POLICY_DRAWS):
        name = OPS[int(draws[first + OP] * len(OPS))]
        strength = int(draws[first + MAGNITUDE] * (_STRENGTHS + 1)) if wide else augment.policy_magnitude
        value = _value(name, strength / _STRENGTHS, side, wide=wide)
        found.append((name, -value if name in _SIGNED and draws[first + SIGN] < 0.5 else value))
    return found


def _value(name: str, strength: float, side: int, *, wide: bool) -> float:
    """Shears as a tangent, shifts in pixels, angles in degrees, enhancers as what a factor is above 1, bits, level."""
    if name.startswith("Shear"):
        return strength * (0.99 if wide else 0.3)
    if name.startswith("Translate"):
        return strength * (32.0 if wide else 150 / 331 * side)
    if name == "Rotate":
        return strength * (135.0 if wide else 30.0)
    if name in _ENHANCERS:
        return strength * (0.99 if wide else 0.9)
    if name == "Posterize":
        return 8 - round(strength * (6 if wide else 4))
    return 255 * (1 - strength)  # of Solarize


def _apply(view: Image.Image, name: str, value: float, fill: Fill) -> Image.Image:
    if name in _ENHANCERS:
        return _ENHANCERS[name](view).enhance(1 + value)
    match name:
        case "ShearX":
            return _moved(view, (1, value, 0, 0, 1, 0), fill)
        case "ShearY":
            return _moved(view, (1, 0, 0, value, 1, 0), fill)
        case "TranslateX":
            return _moved(view, (1, 0, -int(value), 0, 1, 0), fill)
        case "TranslateY":
            return _moved(view, (1, 0, 0, 0, 1, -int(value)), fill)
        case "Rotate":
            return view.rotate(value, Image.Resampling.BILINEAR, fillcolor=fill)
        case "Posterize":
            return ImageOps.posterize(view, int(value))
        case "Solarize":
            return ImageOps.solarize(view, int(value))
        case "AutoContrast":
            return ImageOps.autocontrast(view)
        case "Equalize":
            return ImageOps.equalize(view)
        case "Hue":
            return _turned(view, value)
    return view


def _moved(view: Image.Image, matrix: Sequence[float], fill: Fill) -> Image.Image:
    return view.transform(view.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR, fillcolor=fill)


def _turned(view: Image.Image, turn: float) -> Image.Image:
    hue, saturation, value = view.convert("HSV").split()
    turned = np.asarray(hue) + np.uint8(int(turn * 255) % 256)
    return Image.merge("HSV", (Image.fromarray(turned), saturation, value)).convert("RGB")


def _jittered(view: Image.Image, augment: AugmentConfig, draws: Floats) -> Image.Image:
    """Brightness, contrast, saturation and hue in an order that is drawn too, as torchvision does it."""
    spans = (augment.brightness, augment.contrast, augment.saturation, augment.hue)
    if not any(spans):
        return view
    for which in _ORDERS[int(draws[JITTER_ORDER] * len(_ORDERS))]:
        index, name = _JITTERS[which]
        if spans[which]:
            view = _apply(view, name, (2 * draws[index] - 1) * spans[which], fill=())
    return view
