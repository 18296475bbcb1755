"""A small real data set: digits that scikit-learn ships."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits


def write_digits(root: Path, each: int = 40) -> Path:
    """A tree of class folders with PNGs of each digit, 8x8 enlarged to 32x32, gray."""
    images, labels = load_digits(return_X_y=True)
    for label in range(10):
        (root / f"digit-{label}").mkdir()
        for number, pixels in enumerate(images[labels == label][:each]):
            (root / f"digit-{label}" / f"{number:03}.png").write_bytes(png(pixels.reshape(8, 8)))
    return root


def png(pixels: np.ndarray) -> bytes:
    """Gray values 0..16 as a 32x32 PNG."""
    buffer = io.BytesIO()
    image = Image.fromarray((pixels * 15.9).astype(np.uint8))
    image.resize((32, 32), Image.Resampling.BICUBIC).save(buffer, "PNG")
    return buffer.getvalue()
