"""Images made in code: good ones, odd but good ones, and broken ones, each with the verdict it must get."""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Callable
from io import BytesIO
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

UInt8s = npt.NDArray[np.uint8]
WIDTH, HEIGHT = 48, 36


def pixels(seed: int = 0, width: int = WIDTH, height: int = HEIGHT) -> UInt8s:
    """A smooth random colour picture, uint8[height, width, 3]; another seed is another picture."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def photo(seed: int, width: int, height: int) -> UInt8s:
    """A picture with detail at all scales, its JPEG as long as a photograph's, uint8[height, width, 3]."""
    rng, total = np.random.default_rng(seed), np.zeros((height, width, 3))
    for cells in (4, 16, 64, 256):
        noise = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), np.uint8))
        total += np.asarray(noise.resize((width, height), Image.Resampling.BICUBIC), float) / cells**0.1
    return np.uint8(255 * (total - total.min()) / np.ptp(total))


def encode(image: UInt8s | Image.Image, format_: str = "JPEG", **options: Any) -> bytes:
    """An array or PIL image as the bytes of a file."""
    buffer = BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, format_, **options)
    return buffer.getvalue()


def jpeg(seed: int = 0) -> bytes:
    """A plain good JPEG of WIDTH x HEIGHT."""
    return encode(pixels(seed), quality=90)


def png_from_header(width: int, height: int, body: bytes = b"") -> bytes:
    """A PNG that claims any size, with whatever compressed pixels."""
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))]
    chunks += [(b"IDAT", body)] if body else []
    parts = [b"\x89PNG\r\n\x1a\n"]
    for kind, payload in [*chunks, (b"IEND", b"")]:
        checksum = zlib.crc32(kind + payload)
        parts.append(struct.pack(">I", len(payload)) + kind + payload + struct.pack(">I", checksum))
    return b"".join(parts)


def _flipped(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 0xFF]) + data[place + 1 :]


def _png_with_flipped_pixels(seed: int) -> bytes:
    data = encode(pixels(seed), "PNG")
    return _flipped(data, data.index(b"IDAT") + 40)


def _zip(seed: int) -> bytes:
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a.jpg", jpeg(seed))
    return buffer.getvalue()


def _too_many_scans(seed: int) -> bytes:
    data = encode(pixels(seed), progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:-2] + data[last:-2] * 200 + data[-2:]


def _html(seed: int) -> bytes:
    return b"<!DOCTYPE html><html><body>404 Not Found %d</body></html>" % seed


BROKEN: dict[str, tuple[Callable[[int], bytes], str]] = {
    "truncated.jpg": (lambda seed: jpeg(seed)[:-200], "truncated"),
    "truncated.png": (lambda seed: encode(pixels(seed), "PNG")[:-400], "truncated"),
    "truncated.gif": (lambda seed: encode(pixels(seed), "GIF")[:-300], "truncated"),
    "truncated.bmp": (lambda seed: encode(pixels(seed), "BMP")[:-300], "truncated"),
    "truncated.webp": (lambda seed: encode(pixels(seed), "WEBP")[:-60], "corrupt"),
    "header_only.jpg": (lambda seed: (data := jpeg(seed))[: data.index(b"\xff\xda")], "corrupt"),
    "header_only.png": (lambda seed: encode(pixels(seed), "PNG")[:33], "corrupt"),
    "empty.jpg": (lambda seed: b"", "empty"),
    "html.jpg": (_html, "not an image"),
    "bomb.png": (
        lambda seed: png_from_header(20000, 20000, zlib.compress(bytes(2**21 + seed))),
        "too many pixels: 400 MP",
    ),
    "flipped.png": (_png_with_flipped_pixels, "corrupt"),
    "zero_size.png": (lambda seed: png_from_header(0, seed), "corrupt"),
    "random.jpg": (lambda seed: np.random.default_rng(seed).bytes(3000), "not an image"),
    "zip.png": (_zip, "not an image"),
    "scans.jpg": (_too_many_scans, "too many scans: 210"),
    "float.tiff": (
        lambda seed: encode(Image.fromarray(pixels(seed)).convert("F"), "TIFF"),
        "unsupported pixels: F",
    ),
    "too_long.bmp": (lambda seed: encode(pixels(seed, 2700, 2600), "BMP"), "too many bytes: 21 MB"),
}
"""Name to (bytes of a seed, reason under the default limits of 50 MP and 20 MB)."""


def _rotated(seed: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn 90 degrees clockwise to see it upright
    return encode(Image.fromarray(pixels(seed)).transpose(Image.Transpose.ROTATE_90), "PNG", exif=exif)


def _transparent(seed: int) -> Image.Image:
    """The left half opaque, the right half invisible."""
    alpha = np.zeros((HEIGHT, WIDTH, 1), np.uint8)
    alpha[:, : WIDTH // 2] = 255
    return Image.fromarray(np.concatenate([pixels(seed), alpha], axis=2))


def _left_over_white(seed: int) -> UInt8s:
    seen = pixels(seed).copy()
    seen[:, WIDTH // 2 :] = 255
    return seen


def _gray(seed: int) -> UInt8s:
    return pixels(seed)[..., 0]


def _stacked(gray: UInt8s) -> UInt8s:
    return np.stack([gray] * 3, axis=2)


def _few_colours(seed: int) -> Image.Image:
    return Image.fromarray(pixels(seed)).quantize(16)


def _animation(seed: int) -> bytes:
    frames = [_few_colours(seed), _few_colours(seed + 1)]
    return encode(frames[0], "GIF", save_all=True, append_images=frames[1:])


def _cmyk(seed: int) -> Image.Image:
    return Image.fromarray(pixels(seed)).convert("CMYK")


def _one_bit(seed: int) -> Image.Image:
    return Image.fromarray(_gray(seed) > 127)


def _rgb(image: Image.Image) -> UInt8s:
    return np.asarray(image.convert("RGB"))


GOOD: dict[str, tuple[Callable[[int], bytes], Callable[[int], UInt8s], float]] = {
    "plain.jpg": (jpeg, pixels, 8),
    "jpeg_named.png": (jpeg, pixels, 8),
    "progressive.jpg": (lambda seed: encode(pixels(seed), quality=90, progressive=True), pixels, 8),
    "gray.jpg": (lambda seed: encode(_gray(seed), quality=95), lambda seed: _stacked(_gray(seed)), 8),
    "cmyk.jpg": (lambda seed: encode(_cmyk(seed), quality=95), pixels, 8),
    "plain.png": (lambda seed: encode(pixels(seed), "PNG"), pixels, 0),
    "gray.png": (lambda seed: encode(_gray(seed), "PNG"), lambda seed: _stacked(_gray(seed)), 0),
    "gray16.png": (
        lambda seed: encode(_gray(seed).astype(np.uint16) * 257, "PNG"),
        lambda seed: _stacked(_gray(seed)),
        0,
    ),
    "gray16.tiff": (
        lambda seed: encode(_gray(seed).astype(np.uint16) * 257, "TIFF"),
        lambda seed: _stacked(_gray(seed)),
        0,
    ),
    "palette.png": (lambda seed: encode(_few_colours(seed), "PNG"), lambda seed: _rgb(_few_colours(seed)), 0),
    "one_bit.png": (lambda seed: encode(_one_bit(seed), "PNG"), lambda seed: _rgb(_one_bit(seed)), 0),
    "alpha.png": (lambda seed: encode(_transparent(seed), "PNG"), _left_over_white, 0),
    "gray_alpha.png": (
        lambda seed: encode(_transparent(seed).convert("LA"), "PNG"),
        lambda seed: _rgb(Image.fromarray(_left_over_white(seed)).convert("L")),
        0,
    ),
    "rotated.png": (_rotated, pixels, 0),
    "animated.gif": (_animation, lambda seed: _rgb(_few_colours(seed)), 0),
    "lossless.webp": (lambda seed: encode(pixels(seed), "WEBP", lossless=True), pixels, 0),
    "alpha.webp": (lambda seed: encode(_transparent(seed), "WEBP", lossless=True), _left_over_white, 0),
    "plain.bmp": (lambda seed: encode(pixels(seed), "BMP"), pixels, 0),
    "plain.tiff": (lambda seed: encode(pixels(seed), "TIFF"), pixels, 0),
    "lzw.tiff": (lambda seed: encode(pixels(seed), "TIFF", compression="tiff_lzw"), pixels, 0),
    "cmyk.tiff": (lambda seed: encode(_cmyk(seed), "TIFF"), pixels, 0),
}
"""Name to (bytes of a seed, what must be seen, largest mean difference of a value)."""
