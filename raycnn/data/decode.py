"""Bytes to an upright RGB image, or the reason why not.

Rules, by content and never by name: JPEG, PNG, WebP, BMP, TIFF and GIF are read, the first frame of several.

- gray and 1-bit: the same value in R, G and B (black is 0, white is 255);
- 16-bit gray: the full range 0..65535 scaled to 0..255, rounded; 16-bit colour: the high byte;
- palette: its colours;
- alpha, or a transparent colour: composed over white;
- CMYK: 255 - ink, times key; a JPEG's is taken as Adobe writes it, inverted;
- EXIF orientation: applied; a broken EXIF block is ignored, and so are colour profiles.
"""

from __future__ import annotations

import warnings
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from typing import Final

import numpy as np
from PIL import Image, ImageOps
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

# Image.open warns about, or refuses, large images by a limit of its own; these classes leave the limit to us.
_OPENERS: Final[tuple[tuple[bytes, type[ImageFile]], ...]] = (
    (b"\xff\xd8\xff", JpegImageFile),
    (b"\x89PNG\r\n\x1a\n", PngImageFile),
    (b"RIFF", WebPImageFile),
    (b"GIF8", GifImageFile),
    (b"BM", BmpImageFile),
    (b"II*\0", TiffImageFile),
    (b"MM\0*", TiffImageFile),
)
_UNSUPPORTED: Final = ("F", "I", "LAB", "HSV")  # no rule says what of their range is black and white
_PILLOW: Final = r"PIL\."
_MAX_SCANS: Final = 100  # each scan of a progressive JPEG costs a pass over all pixels; encoders write about ten


@dataclass(frozen=True)
class Limits:
    """What is refused before anything is decoded."""

    max_pixels: int
    max_bytes: int


class BadImage(Exception):  # noqa: N818
    """Bytes that are no usable image; `reason` is short and stable, and so is str()."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def decode(data: bytes, limits: Limits) -> Image.Image:
    """The upright RGB image in `data`; its `format` names the file format, such as "JPEG".

    The size is checked from the header, before any pixel is decoded or allocated. Safe in threads.

    Raises:
        BadImage: "empty", "too many bytes: N MB", "not an image", "too many pixels: N MP", "truncated",
            "corrupt", "too many scans: N" (progressive JPEG), "unsupported pixels: MODE" (float, LAB).
    """
    _silence_pillow()
    check_bytes(len(data), limits)
    opener = next((opener for magic, opener in _OPENERS if data.startswith(magic)), None)
    if opener is None or (opener is WebPImageFile and data[8:12] != b"WEBP"):
        raise BadImage("not an image")
    try:
        image = _open(opener, data, limits)
        image.load()
    except (BadImage, MemoryError):
        raise
    except Exception as error:  # Pillow raises nearly every type there is on broken files
        raise BadImage(_reason(error)) from None
    with suppress(Exception):  # a broken EXIF block does not make the pixels bad
        ImageOps.exif_transpose(image, in_place=True)
    rgb = _to_rgb(image)
    rgb.format = opener.format
    return rgb


def check_bytes(size: int, limits: Limits) -> None:
    """Refuse an image by its number of bytes alone, before it is read.

    Raises:
        BadImage: "empty" or "too many bytes: N MB".
    """
    if size == 0:
        raise BadImage("empty")
    if size > limits.max_bytes:
        raise BadImage(f"too many bytes: {size / 1e6:.0f} MB")


def _open(opener: type[ImageFile], data: bytes, limits: Limits) -> ImageFile:
    image = opener(BytesIO(data))
    pixels = image.width * image.height
    if pixels > limits.max_pixels:
        raise BadImage(f"too many pixels: {pixels / 1e6:.0f} MP")
    if opener is JpegImageFile and (scans := data.count(b"\xff\xda")) > _MAX_SCANS:
        raise BadImage(f"too many scans: {scans}")
    return image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        values = np.asarray(image).astype(np.uint32)
        image = Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))
    if image.mode in _UNSUPPORTED:
        raise BadImage(f"unsupported pixels: {image.mode}")
    if image.has_transparency_data:
        over = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", over.size, "white"), over)
    return image if image.mode == "RGB" else image.convert("RGB")


def _reason(error: Exception) -> str:
    if isinstance(error, Image.DecompressionBombError):  # some openers check on their own
        return "too many pixels"
    return "truncated" if isinstance(error, EOFError) or "truncated" in str(error).lower() else "corrupt"


def _silence_pillow() -> None:
    """Pillow's warnings about odd files say nothing that the verdict does not.

    `warnings.catch_warnings` is not safe in threads, so the filter is put in front, and again when it is not.
    """
    first = warnings.filters[0] if warnings.filters else None
    if first is None or first[0] != "ignore" or getattr(first[3], "pattern", None) != _PILLOW:
        warnings.filterwarnings("ignore", module=_PILLOW)
