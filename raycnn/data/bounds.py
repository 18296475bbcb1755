"""What decoding a file would cost, told by its header: memory, passes over its pixels, pieces to walk through.

Decoders have no time limit and threads cannot be stopped, so work without bound is refused before it starts:

- memory: at most 5 bytes for each of `max_pixels` (250 MB for 50 MP), what Pillow and libjpeg hold included; a JPEG
  that needs more is decoded at half its width and height, if that is enough;
- a progressive JPEG: at most 100 scans, and 10 x `max_pixels` over all of them, as each is a pass over the picture;
- pieces (chunks, segments, blocks, runs), which Pillow walks one by one in Python: 4,096 before the picture, a
  million in it; 65,536 strips or tiles of a TIFF;
- TIFF: the compressions whose decoders keep to these bounds.
"""

from __future__ import annotations

import struct
from io import BytesIO
from typing import Final

from PIL.ImageFile import ImageFile
from PIL.TiffImagePlugin import TiffImageFile

_BYTES_PER_PIXEL: Final = 5
_MAX_SCANS: Final = 100  # encoders write about ten
_MAX_PASSES: Final = 10
_PIECES_BEFORE: Final = 4096
_PIECES_IN: Final = 1_000_000
_MAX_STRIPS: Final = 65536
_COMPRESSIONS: Final = (1, 2, 3, 4, 5, 7, 8, 32773, 32946)  # none, CCITT, LZW, JPEG, deflate, PackBits
_COMPRESSION, _STRIPS, _TILE_WIDTH, _TILE_HEIGHT, _TILES = 259, 273, 322, 323, 324
_ORIENTATION: Final = 274
_WEBP: Final = 12  # two canvases of the animation decoder and a copy
_BMP_RUNS: Final = 25  # the time of Pillow's Python decoder, told as memory: 10 MP
_RGB: Final = 4
_PIXEL: Final = {"1": 1, "L": 1, "P": 1}  # bytes in Pillow's memory; 16-bit ones 2, all others 4
EXIF: Final = b"Exif\0\0"


class BadImage(Exception):  # noqa: N818
    """Bytes that are no usable image; `reason` is short and stable, and so is str()."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Pieces(BytesIO):
    """A file that gives out so many pieces and no more: BadImage "too many pieces" after `_PIECES_BEFORE`."""

    left = _PIECES_BEFORE

    def read(self, size: int | None = -1, /) -> bytes:
        """As of any file."""
        self.left -= 1
        if self.left < 0:
            raise BadImage("too many pieces")
        return super().read(size)

    def opened(self) -> None:
        """The header is read, now comes the picture."""
        self.left = _PIECES_IN


def fits(held: float, max_pixels: int) -> bool:
    """Whether so many bytes are at most 5 for each of `max_pixels`."""
    return held <= max_pixels * _BYTES_PER_PIXEL


def check_memory(held: float, max_pixels: int) -> None:
    """BadImage "too much memory: N MB" for what does not fit."""
    if not fits(held, max_pixels):
        raise BadImage(f"too much memory: {held / 1e6:.0f} MB")


def check_unopened(format_: str, data: bytes, max_pixels: int) -> None:
    """What must be known before Pillow opens a WebP (it allocates the canvas) or a TIFF (it lists all strips).

    Raises:
        BadImage: "too many pixels: N MP", or as `check_memory`; "too many pieces", "unsupported compression: N".
    """
    if format_ == "WEBP":
        check_pixels(pixels := _webp_pixels(data), max_pixels)
        check_memory(pixels * (_WEBP + _RGB), max_pixels)
    elif format_ == "TIFF":
        tags = _directory(data)
        if max(tags.get(_STRIPS, (0, 0))[0], tags.get(_TILES, (0, 0))[0]) > _MAX_STRIPS:
            raise BadImage("too many pieces")
        compression = tags.get(_COMPRESSION, (1, 1))[1]
        if compression not in _COMPRESSIONS:
            raise BadImage(f"unsupported compression: {compression}")
        check_pixels(tags.get(_TILE_WIDTH, (0, 0))[1] * tags.get(_TILE_HEIGHT, (0, 0))[1], max_pixels)


def check_opened(image: ImageFile, data: bytes, position: int, max_pixels: int) -> None:
    """Refuse by size, mode and structure, before anything is decoded; have a large JPEG decoded at half its size.

    Args:
        image: as Pillow opened it.
        data: the file.
        position: how far Pillow has read.
        max_pixels: of the picture.

    Raises:
        BadImage: "too many pixels: N MP", "too many scans: N", or as `check_memory`.
    """
    pixels = image.width * image.height
    check_pixels(pixels, max_pixels)
    held = _PIXEL.get(image.mode, 2 if image.mode.startswith("I;16") else 4) + (0 if image.mode == "RGB" else _RGB)
    fixed = 0.0
    if image.format == "JPEG":
        scans = data.count(b"\xff\xda")
        if scans > _MAX_SCANS or ("progressive" in image.info and scans * pixels > _MAX_PASSES * max_pixels):
            raise BadImage(f"too many scans: {scans}")
        fixed = pixels * _coefficients(image, data, position)
    elif image.format == "WEBP":
        held += _WEBP
    elif image.format == "TIFF" and image.tile and image.tile[0][0] == "libtiff":
        held += _RGB  # the strip, which may be the whole picture
    elif image.format == "BMP" and image.tile and image.tile[0][0] == "bmp_rle":
        held += _BMP_RUNS
    if not fits(fixed + pixels * (held + _RGB), max_pixels) and _may_turn(image, data):
        held += _RGB
    if image.format == "JPEG" and not fits(fixed + pixels * held, max_pixels):
        image.draft(None, (image.width // 2, image.height // 2))
        pixels = image.width * image.height
    check_memory(fixed + pixels * held, max_pixels)


def check_pixels(pixels: int, max_pixels: int) -> None:
    """BadImage "too many pixels: N MP" above `max_pixels`."""
    if pixels > max_pixels:
        raise BadImage(f"too many pixels: {pixels / 1e6:.0f} MP")


def orientation(image: ImageFile) -> int:
    """The EXIF orientation, 1 to 8; 1 where there is none or it is broken. Nothing else of the block is read."""
    exif = image.info.get("exif")
    if isinstance(image, TiffImageFile):
        return _valid(image.tag_v2.get(_ORIENTATION))
    return exif_orientation(exif) if isinstance(exif, bytes) else 1


def exif_orientation(block: bytes) -> int:
    """As `orientation`, of an EXIF block with or without its mark; 1 for any other bytes."""
    return _valid(_directory(block.removeprefix(EXIF)).get(_ORIENTATION, (1, 1))[1])


def _valid(told: object) -> int:
    return told if isinstance(told, int) and 1 <= told <= 8 else 1


def _may_turn(image: ImageFile, data: bytes) -> bool:
    return orientation(image) != 1 or (image.format == "PNG" and b"eXIf" in data)  # may follow the picture


def _coefficients(image: ImageFile, data: bytes, position: int) -> float:
    """Bytes per pixel that libjpeg keeps of a JPEG whose first scan is not the whole picture."""
    layers = [(h, v) for _, h, v, _ in getattr(image, "layer", ())]
    in_first = data[data.rfind(b"\xff\xda", 0, position) + 4 :][:1]
    if not layers or ("progressive" not in image.info and in_first == bytes([len(layers)])):
        return 0
    widest, highest = max(h for h, _ in layers) or 1, max(v for _, v in layers) or 1
    return float(2 * sum(h * v for h, v in layers) / (widest * highest))


def _webp_pixels(data: bytes) -> int:
    kind = data[12:16]
    if kind == b"VP8X":
        width, height = (int.from_bytes(data[at : at + 3], "little") + 1 for at in (24, 27))
    elif kind == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    else:
        width, height = (int.from_bytes(data[at : at + 2], "little") & 0x3FFF for at in (26, 28))
    return width * height


def _directory(data: bytes) -> dict[int, tuple[int, int]]:
    """(count, first value if it lies in the entry) by tag, of the first directory of a TIFF or an EXIF block."""
    order = {b"II": "<", b"MM": ">"}.get(data[:2], "")
    found: dict[int, tuple[int, int]] = {}
    try:
        (start,) = struct.unpack_from(f"{order}I", data, 4)
        (count,) = struct.unpack_from(f"{order}H", data, start)
        for at in range(start + 2, start + 2 + 12 * count, 12):
            tag, kind, number = struct.unpack_from(f"{order}HHI", data, at)
            (value,) = struct.unpack_from(order + ("H" if kind == 3 else "I"), data, at + 8)
            found.setdefault(tag, (number, value))
    except struct.error:  # cut off; what was there counts
        pass
    return found
