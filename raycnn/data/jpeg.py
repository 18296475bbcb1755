"""Plain JPEGs, by libjpeg-turbo in one call that holds no lock: Pillow's pixels at half the work around them."""

from __future__ import annotations

from typing import Final

import simplejpeg
from PIL import Image

from raycnn.data.bounds import EXIF, exif_orientation, fits

_START_OF_SCAN: Final = 0xDA
_APP1: Final = 0xE1
_BASELINE: Final = (0xC0, 0xC1)
_OTHER_FRAMES: Final = frozenset({*range(0xC2, 0xD0)} - {0xC4})  # progressive, lossless, arithmetic; C4 is a table
_MAX_SEGMENTS: Final = 64
_RGBX: Final = 4


def decode_plain(data: bytes, max_pixels: int) -> Image.Image | None:
    """The upright RGB image in a JPEG of one scan, gray or of three components, that needs no turning.

    Returns:
        None for any other file, a damaged or a very large one: those are for `raycnn.data.decode` to judge.
    """
    size = _plain_size(data)
    if size is None or not fits(size[0] * size[1] * 2 * _RGBX, max_pixels):
        return None
    try:
        pixels_HWX = simplejpeg.decode_jpeg(data, "RGBX")  # strict: what libjpeg warns of is refused
    except ValueError:
        return None
    return Image.frombytes("RGB", size, pixels_HWX, "raw", "RGBX")


def _plain_size(data: bytes) -> tuple[int, int] | None:
    """(width, height) by the segments before the picture; None unless the file is as `decode_plain` wants it."""
    frame = b""
    at = 2
    for _ in range(_MAX_SEGMENTS):
        if len(data) < at + 4 or data[at] != 0xFF:
            return None
        marker, end = data[at + 1], at + 2 + int.from_bytes(data[at + 2 : at + 4])
        segment = data[at + 4 : end]
        if marker in _OTHER_FRAMES:
            return None
        if marker == _APP1 and segment.startswith(EXIF) and exif_orientation(segment) != 1:
            return None
        if marker in _BASELINE:
            frame = segment
        elif marker == _START_OF_SCAN:
            components = frame[5:6]
            if components not in (b"\1", b"\3") or segment[:1] != components or frame[0] != 8:
                return None
            height, width = int.from_bytes(frame[1:3]), int.from_bytes(frame[3:5])
            return (width, height) if width and height else None
        at = end
    return None
