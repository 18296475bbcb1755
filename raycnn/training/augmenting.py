"""What of augmentation the device does, on whole batches: flips, random erasing, MixUp and CutMix.

All is drawn by what it is for. Flips and erasing: by (seed, view, image), as the crops of decoding tasks are. Mixing:
by (seed, step, place in the global batch), and a place's partner is its neighbour, 2k and 2k + 1: since neighbours in a
permutation are any two rows, nothing is lost, and since every rank has whole pairs, nothing depends on their number.
Where neighbours lie together in the source (data.neighbours), partners are as many places apart.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from raycnn.config import AugmentConfig
from raycnn.data.draws import ERASE, ERASE_AREA, ERASE_LEFT, ERASE_RATIO, ERASE_TOP, HFLIP, NUM_DRAWS, VFLIP
from raycnn.data.keyed import derive_seed, uniforms
from raycnn.training.device import to_device

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
Int64s = npt.NDArray[np.int64]

_CUTMIX, _CENTRE_X, _CENTRE_Y, _BETA = range(4)
_TRIES = 8
_MIX_DRAWS = _BETA + 2 * (1 + 3 * _TRIES)


@dataclass(frozen=True)
class Mix:
    """What the images of a batch are mixed with.

    partners_N: places in this batch; shares_N: of the image itself, in [0, 1], 1 where it stays as it is;
    boxes_N4: (left, top, right, bottom) of what it gets of its partner, empty where the two are blended.
    """

    partners_N: Int64s
    shares_N: Floats
    boxes_N4: Int64s


@dataclass(frozen=True)
class DeviceViews:
    """The device's part of `augment`.

    Args:
        augment: the config's.
        seed: of the reader.
        side: of the images, in pixels.
        apart: places between two that are mixed, a power of two.
    """

    augment: AugmentConfig
    seed: int
    side: int
    apart: int = 1

    def flip(self, images_NHWC: Tensor, draws: Floats) -> Tensor:
        """The images, mirrored as their draws say; the bits that a flip of each alone would give."""
        for index, chance, axis in ((HFLIP, self.augment.hflip, 2), (VFLIP, self.augment.vflip, 1)):
            chosen = np.flatnonzero(draws[:, index] < chance)
            if len(chosen):
                images_NHWC = _mirrored(images_NHWC, chosen, axis)
        return images_NHWC

    def erase(self, images_NCHW: Tensor, draws: Floats, valid_N: Bools) -> Tensor:
        """Normalised images with a rectangle of zeros, the mean colour, where their draws say so and they are valid.

        Zhong et al., "Random Erasing Data Augmentation", 2020. A rectangle that would not fit is cut to the view.
        """
        chosen = valid_N & (draws[:, ERASE] < self.augment.erase)
        if not chosen.any():
            return images_NCHW
        low, high = np.log(self.augment.erase_ratio)
        small, large = self.augment.erase_scale
        areas = small + (large - small) * draws[:, ERASE_AREA]
        ratios = np.exp(low + (high - low) * draws[:, ERASE_RATIO])
        sides = np.sqrt(areas[:, None] * np.stack([ratios, 1 / ratios], 1)) * self.side
        sides = np.clip(np.rint(sides), 1, self.side).astype(np.int64)
        corners = np.floor(draws[:, [ERASE_LEFT, ERASE_TOP]] * (self.side - sides + 1)).astype(np.int64)
        boxes_N4 = np.concatenate([corners, corners + sides], 1) * chosen[:, None]
        return images_NCHW.masked_fill(self._inside(boxes_N4, images_NCHW.device), 0.0)

    def draws(self, views_N: Int64s, key_hashes_N: npt.NDArray[np.uint64]) -> Floats:
        """The same draws as the reader's, float64[N, NUM_DRAWS]."""
        return uniforms(derive_seed(self.seed, "augment"), views_N, key_hashes_N, NUM_DRAWS)

    def mix(self, step: int, first: int, valid_N: Bools) -> Mix:
        """What to mix in a step.

        Args:
            step: of the plan.
            first: where the rows of this rank begin in the global batch, a multiple of 2 * apart as their number is.
            valid_N: the rows that have an image; one without, and its partner, stay as they are.
        """
        num, augment = len(valid_N), self.augment
        places = np.arange(first, first + num)
        draws = uniforms(derive_seed(self.seed, "mix"), np.full(num, step), places.astype(np.uint64), _MIX_DRAWS)
        partners_N = np.arange(num) ^ self.apart
        chance = (augment.cutmix > 0) * (1.0 if augment.mixup == 0 else 0.5)
        cut = draws[:, _CUTMIX] < chance
        shares_N = beta(np.where(cut, augment.cutmix, augment.mixup), draws[:, _BETA:])
        shares_N = np.where(valid_N & valid_N[partners_N], shares_N, 1.0)
        boxes_N4 = self._boxes(shares_N, draws[:, [_CENTRE_X, _CENTRE_Y]]) * cut[:, None]
        width, height = boxes_N4[:, 2] - boxes_N4[:, 0], boxes_N4[:, 3] - boxes_N4[:, 1]
        return Mix(partners_N, np.where(cut, 1 - width * height / self.side**2, shares_N), boxes_N4)

    def mixed(self, images_NCHW: Tensor, mix: Mix) -> Tensor:
        """The images, mixed.

        Zhang et al., "mixup", 2018; Yun et al., "CutMix", 2019.
        """
        device = images_NCHW.device
        blended = (mix.boxes_N4 == 0).all(1)
        weights = to_device(np.where(blended, mix.shares_N, 1.0).astype(np.float32), device)[:, None, None, None]
        if not blended.all():
            weights = weights * ~self._inside(mix.boxes_N4, device)
        others = images_NCHW[to_device(mix.partners_N, device)]
        return images_NCHW * weights + others * (1 - weights)

    def _boxes(self, shares_N: Floats, centres_N2: Floats) -> Int64s:
        """Rectangles of the view's shape, 1 - share of its area, cut at its border."""
        halves = np.sqrt(1 - shares_N)[:, None] * self.side / 2
        centres = centres_N2 * self.side
        boxes = np.concatenate([centres - halves, centres + halves], 1)
        return np.asarray(np.clip(np.rint(boxes), 0, self.side), np.int64)

    def _inside(self, boxes_N4: Int64s, device: torch.device) -> Tensor:
        """bool[N, 1, S, S]: the pixels of each box."""
        left, top, right, bottom = to_device(boxes_N4, device)[:, :, None].unbind(1)
        along = torch.arange(self.side, device=device)
        columns, rows = (along >= left) & (along < right), (along >= top) & (along < bottom)
        return (rows[:, :, None] & columns[:, None, :])[:, None]


def _mirrored(images_NHWC: Tensor, chosen: Int64s, axis: int) -> Tensor:
    if images_NHWC.device.type == "cpu":  # one by one takes a tenth of the time there
        flipped = images_NHWC.clone()
        for place in chosen.tolist():
            flipped[place] = images_NHWC[place].flip(axis - 1)
        return flipped
    places = to_device(chosen, images_NHWC.device)
    return images_NHWC.index_copy(0, places, images_NHWC[places].flip(axis))


def beta(alphas_N: Floats, draws: Floats) -> Floats:
    """One draw of Beta(alpha, alpha) for each row, from uniform draws [N, 2 (1 + 3 tries)].

    As x / (x + y) of two Gamma draws, in logarithms, so that small alphas do not end in 0 / 0; see `_log_gamma`.
    """
    one, other = np.split(draws, 2, axis=1)
    difference = _log_gamma(alphas_N, other) - _log_gamma(alphas_N, one)
    return np.asarray(1 / (1 + np.exp(np.clip(difference, -700, 700))))


def _log_gamma(alphas_N: Floats, draws: Floats) -> Floats:
    """Logarithms of Gamma(alpha) draws: Marsaglia and Tsang, 2000, its rejections in a fixed number of tries.

    A try fails by a chance of at most 0.05; where all fail (1e-10) the mode stands in.
    """
    shape = alphas_N[:, None] + 1  # Gamma(a) is Gamma(a + 1) times U^(1 / a)
    boost, (first, second, third) = 1 - draws[:, 0], np.split(draws[:, 1:], 3, axis=1)
    normal = np.sqrt(-2 * np.log(1 - first)) * np.cos(2 * np.pi * second)
    d = shape - 1 / 3
    v = np.maximum(1 + normal / np.sqrt(9 * d), 0) ** 3
    with np.errstate(divide="ignore"):
        accepted = (v > 0) & (np.log(1 - third) < normal**2 / 2 + d * (1 - v + np.log(v)))
    values = np.where(accepted.any(1), np.take_along_axis(v, accepted.argmax(1)[:, None], 1)[:, 0], 1.0)
    return np.asarray(np.log(d[:, 0] * values) + np.log(boost) / alphas_N)
