"""Bytes to an upright RGB image, or the reason why not.

Rules, by content and never by name: JPEG, PNG, WebP, BMP, TIFF and GIF are read, the first frame of several.

- gray and 1-bit: the same value in R, G and B (black is 0, white is 255);
- 16-bit gray: the full range 0..65535 scaled to 0..255, rounded; 16-bit colour: the high byte;
- palette: its colours;
- alpha, or a transparent colour: composed over white;
- CMYK: 255 - ink, times key; a JPEG's is taken as Adobe writes it, inverted;
- EXIF orientation: applied; a broken EXIF block is ignored, and so are colour profiles.

What one image may cost is bounded by its header: see `raycnn.data.bounds`.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Final

import numpy as np
from PIL import Image
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from raycnn.data.bounds import BadImage, Pieces, check_opened, check_unopened, orientation
from raycnn.data.jpeg import decode_plain

__all__ = ["BadImage", "Limits", "check_bytes", "decode"]


class _Jpeg(JpegImageFile):
    def getexif(self) -> Image.Exif:  # Pillow would read all of the block, whatever its size, for a resolution
        return Image.Exif()


_JPEG: Final = b"\xff\xd8\xff"
# Image.open warns about, or refuses, large images by a limit of its own; these classes leave the limit to us.
_OPENERS: Final[tuple[tuple[bytes, type[ImageFile]], ...]] = (
    (_JPEG, _Jpeg),
    (b"\x89PNG\r\n\x1a\n", PngImageFile),
    (b"RIFF", WebPImageFile),
    (b"GIF8", GifImageFile),
    (b"BM", BmpImageFile),
    (b"II*\0", TiffImageFile),
    (b"MM\0*", TiffImageFile),
)
_UNSUPPORTED: Final = ("F", "I", "LAB", "HSV")  # no rule says what of their range is black and white
_PILLOW: Final = r"PIL\."
_STRIP: Final = 1 << 18  # pixels that are converted at a time
_UPRIGHT: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # by EXIF orientation


@dataclass(frozen=True)
class Limits:
    """What is refused before anything is decoded."""

    max_pixels: int
    max_bytes: int


def decode(data: bytes, limits: Limits) -> Image.Image:
    """The upright RGB image in `data`; its `format` names the file format, such as "JPEG".

    The size is checked from the header, before any pixel is decoded or allocated. Safe in threads.

    Raises:
        BadImage: "empty", "too many bytes: N MB", "not an image", "too many pixels: N MP", "truncated", "corrupt",
            "unsupported pixels: MODE" (float, LAB), "unsupported compression: N" (TIFF); "too much memory: N MB",
            "too many scans: N" (progressive JPEG) and "too many pieces", see `raycnn.data.bounds`.
    """
    check_bytes(len(data), limits)
    if data.startswith(_JPEG) and (plain := decode_plain(data, limits.max_pixels)) is not None:
        plain.format = _Jpeg.format
        return plain
    _silence_pillow()
    opener = next((opener for magic, opener in _OPENERS if data.startswith(magic)), None)
    if opener is None or (opener is WebPImageFile and data[8:12] != b"WEBP"):
        raise BadImage("not an image")
    try:
        image = _open(opener, data, limits)
        image.load()
        rgb = _to_rgb(image)
    except (BadImage, MemoryError):
        raise
    except Exception as error:  # Pillow raises nearly every type there is on broken files
        raise BadImage(_reason(error)) from None
    if (turn := _UPRIGHT.get(orientation(image))) is not None:
        rgb = rgb.transpose(turn)
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
    check_unopened(str(opener.format), data, limits.max_pixels)
    file = Pieces(data)
    image = opener(file)
    check_opened(image, data, file.tell(), limits.max_pixels)
    if image.mode in _UNSUPPORTED:
        raise BadImage(f"unsupported pixels: {image.mode}")
    file.opened()
    return image


def _to_rgb(image: Image.Image) -> Image.Image:
    """Strip by strip, so that a large image takes no more than itself and its result."""
    if image.mode == "RGB" and not image.has_transparency_data:
        return image
    rows = max(1, _STRIP // image.width)
    if rows >= image.height:
        return _converted(image)
    rgb = Image.new("RGB", image.size)
    for top in range(0, image.height, rows):
        bottom = min(top + rows, image.height)
        rgb.paste(_converted(image.crop((0, top, image.width, bottom))), (0, top))
    return rgb


def _converted(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        values = np.asarray(image).astype(np.uint32)
        image = Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))
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
