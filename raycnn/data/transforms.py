"""RGB images to the square uint8 views that a network sees."""

from __future__ import annotations

import math
import threading
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
from cykooz_resizer import CropBox, FilterType, ResizeAlg, ResizeOptions, Resizer
from PIL import Image

from raycnn.config import AugmentConfig
from raycnn.data.distort import distorted
from raycnn.data.draws import AREA, HFLIP, LEFT, RATIO, TOP, VFLIP

UInt8s = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float64]
Box = tuple[float, float, float, float]
Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]

_CONVOLUTIONS: Final = {
    "bilinear": ResizeAlg.convolution(FilterType.bilinear),
    "bicubic": ResizeAlg.convolution(FilterType.catmull_rom),
    "lanczos": ResizeAlg.convolution(FilterType.lanczos3),
}
_thread = threading.local()


@dataclass(frozen=True)
class Preprocessing:
    """What a network expects of its input; stored with every checkpoint.

    Args:
        image_size: side of the square input in pixels.
        crop_fraction: image_size over the short side that an image is resized to before the evaluation crop.
        interpolation: filter of every resize.
        mean, std: per channel of RGB, for values in 0..1; applied on the device, the views here are uint8.
    """

    image_size: int
    crop_fraction: float
    interpolation: Interpolation
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def as_json(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return asdict(self) | {"mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Preprocessing:
        """The inverse of `as_json`."""
        return cls(**fields | {"mean": tuple(fields["mean"]), "std": tuple(fields["std"])})


def eval_view(image: Image.Image, prep: Preprocessing) -> UInt8s:
    """The centre crop of the resized image, uint8[S, S, 3], read-only.

    As torchvision and timm do it: short side to S / crop_fraction, then a centre crop of S. The two are one
    resize of the crop's box here, so that a 10000x10 image costs no more than a square one.
    """
    return np.asarray(_resize(image, _eval_box(image, prep), prep))


def train_view(image: Image.Image, prep: Preprocessing, augment: AugmentConfig, draws: Floats) -> UInt8s:
    """A random resized crop, distorted and flipped, uint8[S, S, 3], read-only.

    Flips come last, so that they may as well be left to the device, see raycnn.training.augmenting.

    Args:
        draws: float64[NUM_DRAWS] in [0, 1), see raycnn.data.draws.
    """
    box = _eval_box(image, prep) if augment.crop_scale is None else _random_box(image, augment, draws)
    fill = tuple(round(255 * mean) for mean in prep.mean)
    view = distorted(_resize(image, box, prep), augment, fill, draws)
    if draws[HFLIP] < augment.hflip:
        view = view.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if draws[VFLIP] < augment.vflip:
        view = view.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
    return np.asarray(view)


def _resize(image: Image.Image, box: Box, prep: Preprocessing) -> Image.Image:
    """One antialiased resize of the box of pixels (left, top, right, bottom).

    By vector instructions, in 16-bit fixed point on every processor: a value differs from Pillow's by 1 at most.
    """
    size = (prep.image_size, prep.image_size)
    if prep.interpolation == "nearest":
        return image.resize(size, Image.Resampling.NEAREST, box=box)
    left, top, right, bottom = box
    view = Image.new("RGB", size)
    crop = CropBox(left, top, right - left, bottom - top)
    _resizer().resize_pil(image, view, ResizeOptions(_CONVOLUTIONS[prep.interpolation], False, crop))
    return view


def _resizer() -> Resizer:
    """This thread's own; it holds the buffer between the two passes."""
    if not hasattr(_thread, "resizer"):
        _thread.resizer = Resizer()
    resizer: Resizer = _thread.resizer
    return resizer


def _eval_box(image: Image.Image, prep: Preprocessing) -> Box:
    size, width, height = prep.image_size, image.width, image.height
    short = round(size / prep.crop_fraction)
    # torchvision rounds the long side down and the corner of the crop half to even
    resized_w = max(short, short * width // height)
    resized_h = max(short, short * height // width)
    left, top = round((resized_w - size) / 2), round((resized_h - size) / 2)
    scale_x, scale_y = width / resized_w, height / resized_h
    right, bottom = min(width, (left + size) * scale_x), min(height, (top + size) * scale_y)
    return (left * scale_x, top * scale_y, right, bottom)


def _random_box(image: Image.Image, augment: AugmentConfig, draws: Floats) -> Box:
    """A box of uniform area and log-uniform aspect ratio among those that fit into the image.

    torchvision draws until a box fits; here the ratios that fit are known, so the number of draws is fixed.
    An image too narrow for any ratio gives the largest box of the nearest one.
    """
    assert augment.crop_scale is not None
    area = _between(augment.crop_scale, draws[AREA]) * image.width * image.height
    low = max(augment.crop_ratio[0], area / image.height**2)
    high = min(augment.crop_ratio[1], image.width**2 / area)
    if low <= high:
        ratio = math.exp(_between((math.log(low), math.log(high)), draws[RATIO]))
    else:
        ratio = min(max(image.width / image.height, augment.crop_ratio[0]), augment.crop_ratio[1])
    width = min(math.sqrt(area * ratio), image.height * ratio, image.width)
    height = min(width / ratio, image.height)
    left, top = draws[LEFT] * (image.width - width), draws[TOP] * (image.height - height)
    return (left, top, min(left + width, image.width), min(top + height, image.height))


def _between(bounds: tuple[float, float], share: float) -> float:
    return float(bounds[0] + (bounds[1] - bounds[0]) * share)
