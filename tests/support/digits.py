"""A small real data set: digits that scikit-learn ships."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits


def digit_files(each: int = 40) -> Iterator[tuple[str, bytes]]:
    """Keys by class folder, and PNGs, of some of each digit: 8x8 enlarged to 32x32, gray."""
    images, labels = load_digits(return_X_y=True)
    for label in range(10):
        for number, pixels in enumerate(images[labels == label][:each]):
            yield f"digit-{label}/{number:03}.png", png(pixels.reshape(8, 8))


def write_digits(root: Path, each: int = 40) -> Path:
    """The files as a tree."""
    for key, data in digit_files(each):
        path = root / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root


def png(pixels: np.ndarray) -> bytes:
    """Gray values 0..16 as a 32x32 PNG."""
    buffer = io.BytesIO()
    image = Image.fromarray((pixels * 15.9).astype(np.uint8))
    image.resize((32, 32), Image.Resampling.BICUBIC).save(buffer, "PNG")
    return buffer.getvalue()
