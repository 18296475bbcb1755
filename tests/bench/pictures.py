"""Natural pictures by the thousand: noisy crops of the photographs that scikit-learn ships."""

from __future__ import annotations

import io
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images

DISTINCT = 2000


def write_tree(root: Path, count: int, *, width: int = 500, height: int = 375, quality: int = 90) -> None:
    """`count` JPEGs in two class folders below `root`; those beyond DISTINCT differ in what follows the image."""
    made: list[bytes] = []
    pictures = _pictures(width, height, quality)
    for number in range(count):
        if number < DISTINCT:
            made.append(next(pictures))
        path = root / f"class-{number % 2}" / f"{number:06}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(made[number % DISTINCT] + (b"" if number < DISTINCT else b"%d" % number))


def _pictures(width: int, height: int, quality: int) -> Iterator[bytes]:
    photos = [Image.fromarray(photo) for photo in load_sample_images().images]
    random = np.random.default_rng(0)
    for photo in cycle(photos):
        scale = random.uniform(0.85, 1.0)
        w, h = int(photo.width * scale), int(photo.height * scale)
        left, top = random.integers(0, photo.width - w + 1), random.integers(0, photo.height - h + 1)
        pixels = np.asarray(photo.resize((width, height), box=(left, top, left + w, top + h)), np.int16)
        noisy = np.clip(pixels + random.integers(-4, 5, (height, width, 1)), 0, 255).astype(np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(noisy).save(buffer, "JPEG", quality=quality)
        yield buffer.getvalue()
