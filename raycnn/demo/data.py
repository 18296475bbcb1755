"""What the package index has of images: fetched at run time, never part of the project; the demo's solar cells."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from raycnn.errors import DataError, StorageError
from raycnn.storage import Store

LICENCE: Final = (
    "ELPV, 2,624 electroluminescence images of solar cells (Buerhop-Lutz et al. 2018; Deitsch et al. 2019), "
    "licence CC BY-NC-SA 4.0: not for commercial use. Fetched from the package index (91 MB)."
)
"""To be shown to the user before `fetch`."""


@dataclass(frozen=True)
class Package:
    """A wheel by its file name, and its sha256."""

    wheel: str
    sha256: str


ELPV: Final = Package(
    "elpv_dataset-1.0.0.post1-py3-none-any.whl", "85e31c1126ee9b48e62d3a0232c58f58b2d189b0814a45c13642fa0415af4a4c"
)

_FOLDER: Final = "elpv_dataset/data/"
_THREADS: Final = 8


def fetch(cache: Path, package: Package | None = None) -> Path:
    """The wheel (of ELPV) from the folder `cache` or, the first time, from the package index by pip; not installed.

    Raises:
        StorageError: pip cannot get it, or it is not the expected file.
    """
    package = package or ELPV
    wheel = cache / package.wheel
    if wheel.exists() and _sha256(wheel) == package.sha256:
        return wheel
    wheel.unlink(missing_ok=True)  # cut short or changed
    name, version = package.wheel.split("-")[:2]
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "download", "--no-deps"]
    command += ["--only-binary=:all:", "--dest", str(cache), f"{name.replace('_', '-')}=={version}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise StorageError(f"pip download failed: {reason}", where=command[-1], fix="check the package index")
    if not wheel.exists() or _sha256(wheel) != package.sha256:
        raise StorageError("not the expected file", where=str(wheel), fix="check the package index, then retry")
    return wheel


def cells(wheel: Path) -> Iterator[tuple[str, bytes]]:
    """Key and PNG bytes of every cell, in the package's order: "defective/cell0001.png" or "ok/cell0004.png".

    Defective means that the defect probability told by the experts is above one half.

    Raises:
        DataError: labels.csv does not have the form it is known to have.
    """
    with zipfile.ZipFile(wheel) as package:
        labels = package.read(_FOLDER + "labels.csv").decode()
        for number, line in enumerate(labels.splitlines(), 1):
            try:
                image, probability, _cell_type = line.split()
                label = "defective" if float(probability) > 0.5 else "ok"
            except ValueError:
                where = f"{wheel.name}, labels.csv line {number}"
                raise DataError("not a label", where=where, fix="remove the file to fetch it again") from None
            yield f"{label}/{Path(image).name}", package.read(_FOLDER + image)


def upload(wheel: Path, store: Store) -> int:
    """Puts the cells below `store` as a tree of the class folders ok/ and defective/; the number of images.

    Raises:
        StorageError: the store refused or did not answer.
    """
    with ThreadPoolExecutor(_THREADS) as threads:
        return sum(1 for _ in threads.map(lambda cell: store.put(*cell), cells(wheel)))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
