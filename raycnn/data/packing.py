"""Tar archives of samples as WebDataset reads them: NUMBER.jpg, NUMBER.cls and NUMBER.json, one after the other."""

from __future__ import annotations

import io
import json
import tarfile
from typing import Any, Final

import numpy as np
import simplejpeg
from PIL import Image

from raycnn.config import ShardsConfig
from raycnn.data.jpeg import decode_plain

ROOM: Final = 5 * tarfile.BLOCKSIZE
"""Bytes of an archive that a sample takes beside its image, about."""
_SUFFIXES: Final = {
    b"\xff\xd8\xff": "jpg",
    b"\x89PN": "png",
    b"RIF": "webp",
    b"GIF": "gif",
    b"II*": "tif",
    b"MM\0": "tif",
}


def packed(data: bytes, image: Image.Image, settings: ShardsConfig, max_pixels: int) -> bytes:
    """An image's bytes as they go into a shard: a plain JPEG that is small enough stays as it is.

    Args:
        data: the bytes as they were.
        image: what they show, upright, RGB.
        settings: the section `shards`.
        max_pixels: of the index.
    """
    short = min(image.size)
    if settings.keep_bytes or (short <= settings.short_side and decode_plain(data, max_pixels) is not None):
        return data
    if short > settings.short_side:
        width, height = (max(1, round(side * settings.short_side / short)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    encoded: bytes = simplejpeg.encode_jpeg(np.asarray(image), settings.quality, "RGB", "420")
    return encoded


class Archive:
    """A tar archive in memory."""

    def __init__(self) -> None:
        self._file = io.BytesIO()
        self._tar = tarfile.open(fileobj=self._file, mode="w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115

    def add(self, name: str, image: bytes, label: int | None, described: dict[str, Any]) -> int:
        """Add one sample.

        Args:
            name: no other sample of the data set has it.
            image: its bytes.
            label: number of its class; None: there is none such.
            described: what NAME.json tells.

        Returns:
            where the image begins.
        """
        offset = self._add(f"{name}.{_SUFFIXES.get(image[:3], 'bmp')}", image)
        if label is not None:
            self._add(f"{name}.cls", str(label).encode())
        self._add(f"{name}.json", json.dumps(described).encode())
        return offset

    def close(self) -> bytes:
        """The whole archive."""
        self._tar.close()
        return self._file.getvalue()

    def _add(self, name: str, data: bytes) -> int:
        member = tarfile.TarInfo(name)
        member.size = len(data)
        start = self._tar.offset + tarfile.BLOCKSIZE  # behind the member's header
        self._tar.addfile(member, io.BytesIO(data))
        return start
