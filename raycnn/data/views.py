"""Evaluation views of an image for several networks, of one fetch and one decoding."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from raycnn.data.reader import ImageReader
from raycnn.data.transforms import Preprocessing, eval_view

UInt8s = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class ViewsReader(ImageReader):
    """Reads an image as all of its views, one behind the other, uint8[bytes]; `apart` takes them apart.

    Args:
        others: preprocessing of the views that follow the first one.
    """

    others: tuple[Preprocessing, ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        """Bytes of all views."""
        return (sum(map(_bytes, (self.preprocessing, *self.others))),)

    def _view(self, image: Image.Image, draws: npt.NDArray[np.float64]) -> UInt8s:
        views = [eval_view(image, each).ravel() for each in (self.preprocessing, *self.others)]
        return np.concatenate(views) if len(views) > 1 else views[0]


def distinct(preprocessing: Iterable[Preprocessing]) -> tuple[list[Preprocessing], list[int]]:
    """The views that differ, in order, and which of them each is; mean and standard deviation make no other view."""
    found: list[Preprocessing] = []
    which = []
    for each in preprocessing:
        place = next((n for n, other in enumerate(found) if _pixels(each) == _pixels(other)), len(found))
        found += [each] if place == len(found) else []
        which.append(place)
    return found, which


def apart(images_NB: UInt8s, views: Sequence[Preprocessing]) -> list[UInt8s]:
    """What a ViewsReader of these views has read: uint8[N, S, S, 3] for each of them."""
    ends = np.cumsum([_bytes(view) for view in views])
    parts = np.split(images_NB, ends[:-1], axis=1)
    sides = [view.image_size for view in views]
    return [part.reshape(-1, side, side, 3) for part, side in zip(parts, sides, strict=True)]


def _bytes(view: Preprocessing) -> int:
    return math.prod((view.image_size, view.image_size, 3))


def _pixels(view: Preprocessing) -> tuple[int, float, str]:
    return view.image_size, view.crop_fraction, view.interpolation
