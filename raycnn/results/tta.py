"""Test-time augmentation: several views of an image, the mean of their probabilities."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Final

import numpy as np
import numpy.typing as npt

from raycnn.config.base import Tta
from raycnn.data.transforms import Preprocessing

UInt8s = npt.NDArray[np.uint8]
Logits = npt.NDArray[np.float32]

_WIDER: Final = 8 / 7  # 256 over 224, as Krizhevsky et al., 2012, took their crops


def tta_preprocessing(preprocessing: Preprocessing, tta: Tta) -> Preprocessing:
    """How images are to be read for `tta_outputs`: for crops the whole centre square, somewhat larger."""
    if not tta.startswith("crops"):
        return preprocessing
    size = preprocessing.image_size
    side = max(round(size / preprocessing.crop_fraction), round(size * _WIDER))
    return replace(preprocessing, image_size=side, crop_fraction=1.0)


def tta_outputs(network: Callable[[UInt8s], Logits], images_NHWC: UInt8s, size: int, tta: Tta, task: str) -> Logits:
    """Outputs for each image that say its views' mean probabilities, or their mean number; of one view as they are.

    Args:
        network: uint8 images_NHWC of `size` to float32 outputs_NK.
        images_NHWC: as read by `tta_preprocessing`.
        size: of the network's input.
        tta: hflip: the image and its mirror image; flips: also upside down, four in all; crops: the four corners and
            the centre; crops_hflip: these and their mirror images.
        task: of the network's problem.
    """
    if tta == "none":
        return network(images_NHWC)
    found = np.stack([network(np.ascontiguousarray(view)) for view in _views(images_NHWC, size, tta)]).astype(float)
    if task == "regression":
        return np.asarray(found.mean(0), np.float32)
    if task == "single-label":
        return np.asarray(np.logaddexp.reduce(found - np.logaddexp.reduce(found, axis=2, keepdims=True)), np.float32)
    yes, no = -np.logaddexp(0, -found), -np.logaddexp(0, found)  # logarithms of the probabilities
    return np.asarray(np.logaddexp.reduce(yes) - np.logaddexp.reduce(no), np.float32)


def _views(images_NHWC: UInt8s, size: int, tta: Tta) -> list[UInt8s]:
    if not tta.startswith("crops"):
        mirrored = [images_NHWC, images_NHWC[:, :, ::-1]]
        return mirrored if tta == "hflip" else mirrored + [view[:, ::-1] for view in mirrored]
    end = images_NHWC.shape[1] - size
    corners = [(0, 0), (0, end), (end, 0), (end, end), (round(end / 2), round(end / 2))]
    crops = [images_NHWC[:, top : top + size, left : left + size] for top, left in corners]
    return crops + [crop[:, :, ::-1] for crop in crops] if tta == "crops_hflip" else crops
