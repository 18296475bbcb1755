"""Images as they come, and as an attacker makes them: each with the verdict that raycnn documents for it.

`CORPUS` holds the odd ones that are converted (tests.support.images.GOOD says to which pixels) and the broken ones with
the reason of their quarantine. `mutated` gives any number of damaged files, the same ones for a seed.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
from PIL import Image

from tests.faults.kit import rawfiles as raw
from tests.support.images import BROKEN, GOOD, encode, jpeg, pixels

GOOD_SIZE = (48, 36)


@dataclass(frozen=True)
class Case:
    """One kind of file: its bytes, and its size when it is converted or the reason when it is not."""

    name: str
    make: Callable[[], bytes]
    size: tuple[int, int] | None = None
    reason: str = ""


def _scans(width: int, height: int, count: int) -> bytes:
    """A progressive JPEG that repeats its last scan."""
    data = encode(Image.new("RGB", (width, height)), progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:-2] + data[last:-2] * count + data[-2:]


def _swapped(data: bytes, old: bytes, new: bytes) -> bytes:
    assert old in data
    return data.replace(old, new, 1)


def _flat(width: int, height: int, mode: str = "RGB", format_: str = "PNG") -> bytes:
    return encode(Image.new(mode, (width, height)), format_)


def _pages(count: int) -> bytes:
    pages = [Image.fromarray(pixels(n)) for n in range(count)]
    return encode(pages[0], "TIFF", save_all=True, append_images=pages[1:])


def _animated(format_: str) -> bytes:
    frames = [Image.fromarray(pixels(n)) for n in range(3)]
    return encode(frames[0], format_, save_all=True, append_images=frames[1:], lossless=True)


def _nan_tiff() -> bytes:
    return encode(Image.fromarray(np.full((36, 48), np.nan, np.float32)), "TIFF")


def _tiled() -> bytes:
    tags = [tag for tag in raw.plain_tags(48, 36) if tag[0] not in (273, 278, 279)]
    return raw.tiff([*tags, (322, 4, 1, 48), (323, 4, 1, 48), (324, 4, 1, 8), (325, 4, 1, 48 * 48)], bytes(48 * 48))


def _interlaced() -> bytes:
    """2 x 2 black pixels in the seven passes of a PNG."""
    header = raw.chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 2, 8, 2, 0, 0, 1))
    return raw.PNG_MAGIC + header + raw.chunk(b"IDAT", zlib.compress(bytes(4 + 4 + 7))) + _END


def _without(data: bytes, kind: bytes) -> bytes:
    """A PNG without its first chunk of a kind."""
    at = data.index(kind) - 4
    (length,) = struct.unpack_from(">I", data, at)
    return data[:at] + data[at + 12 + length :]


def _marker(data: bytes, marker: int) -> int:
    return data.index(bytes([0xFF, marker]))


def _restarts() -> bytes:
    """A JPEG with restart markers, all of them with the same number."""
    data = bytearray(encode(pixels(0), quality=90, restart_marker_blocks=1))
    for at in range(data.index(b"\xff\xda"), len(data) - 1):
        if data[at] == 0xFF and 0xD0 <= data[at + 1] <= 0xD7:
            data[at + 1] = 0xD5
    return bytes(data)


def _huffman() -> bytes:
    """A JPEG whose first Huffman table promises more codes than there can be."""
    data = bytearray(jpeg())
    at = _marker(bytes(data), 0xC4) + 5
    data[at : at + 16] = b"\xff" * 16
    return bytes(data)


def _icc() -> bytes:
    from PIL import ImageCms

    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    return encode(pixels(0), quality=90, icc_profile=profile)


_INFLATED = zlib.compress(bytes(200_000_000), 1)
_ONE = raw.chunk(b"IDAT", raw.PIXELS)
_END = raw.chunk(b"IEND")


def _ok(name: str, make: Callable[[], bytes], size: tuple[int, int] = GOOD_SIZE) -> Case:
    return Case(name, make, size)


def _bad(name: str, reason: str, make: Callable[[], bytes]) -> Case:
    return Case(name, make, None, reason)


CORPUS: list[Case] = [
    *(Case(name, partial(make, 1), GOOD_SIZE) for name, (make, _, _) in GOOD.items()),
    *(Case(name, partial(make, 1), None, reason) for name, (make, reason) in BROKEN.items()),
    # odd, and converted
    _ok("apng.png", lambda: _animated("PNG")),
    _ok("animated.webp", lambda: _animated("WEBP")),
    _ok("interlaced.png", lambda: _interlaced(), (2, 2)),
    _ok("many_pages.tiff", lambda: _pages(40)),
    _ok("tiled.tiff", _tiled),
    _ok("jpeg_in.tiff", lambda: encode(pixels(0), "TIFF", compression="jpeg")),
    _ok("deflate.tiff", lambda: encode(pixels(0), "TIFF", compression="tiff_adobe_deflate")),
    _ok("lab_profile.jpg", _icc),
    _ok("rgb16.png", lambda: raw.png(raw.chunk(b"IDAT", zlib.compress(bytes(7))), _END, depth=16), (1, 1)),
    _ok("one_pixel.png", lambda: _flat(1, 1), (1, 1)),
    _ok("one_pixel.webp", lambda: _flat(1, 1, format_="WEBP"), (1, 1)),
    _ok("a_line.png", lambda: _flat(1, 5000), (1, 5000)),
    _ok("a_long_line.png", lambda: _flat(100_000, 1), (100_000, 1)),
    _ok("a_strip.jpg", lambda: _flat(65_500, 2, format_="JPEG"), (65_500, 2)),
    _ok("no_end.png", lambda: raw.png(_ONE), (1, 1)),
    _ok("wrong_pixel_crc.png", lambda: raw.png(raw.chunk(b"IDAT", raw.PIXELS, crc=1), _END), (1, 1)),
    _ok("length_past_end.png", lambda: raw.png(struct.pack(">I", 2**31 - 1) + b"IDAT" + raw.PIXELS), (1, 1)),
    _ok("text_behind.jpg", lambda: jpeg() + b"<?php echo 1;" * 1000),
    _ok("zip_behind.png", lambda: encode(pixels(0), "PNG") + b"PK\3\4" + bytes(500)),
    _ok("wrong_restarts.jpg", _restarts),
    _ok("huge_exif.jpg", lambda: raw.with_segment(jpeg(), 0xE1, b"Exif\0\0MM\0*\0\0\0\x08" + bytes(60_000), 100)),
    _ok("exif_bomb.jpg", lambda: raw.with_segment(jpeg(), 0xE1, raw.directory_bomb(2000, 30_000))),
    _ok("exif_bomb.png", lambda:
        raw.png(raw.chunk(b"eXIf", raw.directory_bomb(2000, 9_000_000)[6:]), _ONE, _END), (1, 1)),
    _ok("runs.bmp", lambda: raw.bmp_of_runs(48, 36, b"\x30\x07\0\0" * 36 + b"\0\1")),
    _ok("50_megapixels.png", lambda: _flat(10_000, 5_000, "1"), (10_000, 5_000)),
    _ok("50_megapixels.jpg", lambda: _flat(10_000, 5_000, format_="JPEG"), (10_000, 5_000)),
    _ok("large_cmyk.jpg", lambda: _flat(8000, 5000, "CMYK", "JPEG"), (4000, 2500)),
    # no image, or none of the allow-list
    _bad("one_byte.jpg", "not an image", lambda: b"\xff"),
    _bad("magic_alone.jpg", "corrupt", lambda: b"\xff\xd8\xff"),
    _bad("magic_alone.png", "corrupt", lambda: raw.PNG_MAGIC),
    _bad("magic_alone.gif", "corrupt", lambda: b"GIF89a"),
    _bad("magic_alone.webp", "corrupt", lambda: b"RIFF\0\0\0\0WEBP"),
    _bad("magic_alone.tiff", "corrupt", lambda: b"II*\0"),
    _bad("magic_alone.bmp", "corrupt", lambda: b"BM"),
    _bad("text.jpg", "not an image", lambda: b"cat\n" * 99),
    _bad("vector.svg", "not an image", lambda:
        b'<svg xmlns="http://www.w3.org/2000/svg"><image href="/etc/passwd"/></svg>'),
    _bad("script.eps", "not an image", lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(x) run"),
    _bad("page.pdf", "not an image", lambda: b"%PDF-1.7\n"),
    _bad("sound.wav", "not an image", lambda: b"RIFF\x24\0\0\0WAVEfmt " + bytes(40)),
    _bad("photo.heic", "not an image", lambda: raw.iso_media(b"heic")),
    _bad("photo.avif", "not an image", lambda: raw.iso_media(b"avif")),
    _bad("big.tiff", "not an image", lambda: b"II+\0\x08\0\0\0" + bytes(64)),
    _bad("wrong_magic.png", "not an image", lambda: b"\x88" + encode(pixels(0), "PNG")[1:]),
    _bad("old.ppm", "not an image", lambda: encode(pixels(0), "PPM")),
    _bad("nan.tiff", "unsupported pixels: F", _nan_tiff),
    # broken
    _bad("no_pixels.png", "corrupt", lambda: _without(encode(pixels(0), "PNG"), b"IDAT")),
    _bad("no_palette.png", "corrupt", lambda: _without(encode(Image.fromarray(pixels(0)).quantize(9), "PNG"), b"PLTE")),
    _bad("wrong_crc.png", "corrupt", lambda: _swapped(encode(pixels(0), "PNG"), b"IHDR\0\0\0\x30", b"IHDR\0\0\0\x31")),
    _bad("no_end.jpg", "truncated", lambda: jpeg()[:-2]),
    _bad("no_scan.jpg", "corrupt", lambda: (data := jpeg())[: _marker(data, 0xDA)] + b"\xff\xd9"),
    _bad("no_tables.jpg", "corrupt", lambda: _swapped(jpeg(), b"\xff\xdb", b"\xff\xfe")),
    _bad("huffman.jpg", "corrupt", _huffman),
    _bad("12_bit.jpg", "corrupt", lambda: _swapped(jpeg(), b"\xff\xc0\x00\x11\x08", b"\xff\xc0\x00\x11\x0c")),
    _bad("cut_in_header.webp", "corrupt", lambda: _flat(9, 9, format_="WEBP")[:22]),
    _bad("no_strips.tiff", "corrupt", lambda: raw.tiff(raw.plain_tags(48, 36)[:5])),
    _bad("directory_past_end.tiff", "corrupt", lambda: b"II*\0\xff\xff\xff\x7f"),
    _bad("zero_size.gif", "corrupt", lambda: raw.gif(0, 0)),
    _bad("zero_size.jpg", "corrupt", lambda: _swapped(jpeg(), b"\x08\x00\x24\x00\x30", b"\x08\x00\x00\x00\x00")),
    _bad("negative.bmp", "too many pixels: 154619 MP", lambda: raw.bmp_of_runs(-48, 36, b"\0\1")),
    # bombs
    _bad("bomb.gif", "too many pixels: 4295 MP", lambda: raw.gif(65_535, 65_535)),
    _bad("bomb_frame.gif", "too many pixels", lambda: raw.gif(1, 1, frame=(65_535, 65_535))),
    _bad("bomb.webp", "too many pixels: 268 MP", lambda: raw.webp_canvas(16_383, 16_383)),
    _bad("bomb_canvas.webp", "too much memory: 784 MB", lambda: raw.webp_canvas(7_000, 7_000)),
    _bad("bomb.tiff", "too many pixels: 1600 MP", lambda: raw.tiff(raw.plain_tags(40_000, 40_000, 8, 99))),
    _bad("bomb_tile.tiff", "too many pixels: 4294 MP", lambda: raw.tiff(
        [*raw.plain_tags(9, 9, 8)[:5], (322, 4, 1, 65_520), (323, 4, 1, 65_536), (324, 4, 1, 8), (325, 4, 1, 99)])),
    _bad("bomb.bmp", "too many pixels: 900 MP", lambda: raw.bmp_of_runs(30_000, 30_000, b"\0\1")),
    _bad("bomb.jpg", "too many pixels: 4225 MP", lambda:
        _swapped(jpeg(), b"\x08\0\x24\0\x30", b"\x08\xfd\xe8\xfd\xe8")),
    _bad("text_bomb.png", "corrupt", lambda: raw.png(raw.chunk(b"zTXt", b"a\0\0" + _INFLATED), _ONE, _END)),
    _bad("text_bomb_behind.png", "corrupt", lambda: raw.png(_ONE, raw.chunk(b"zTXt", b"a\0\0" + _INFLATED), _END)),
    _bad("profile_bomb.png", "corrupt", lambda: raw.png(raw.chunk(b"iCCP", b"a\0\0" + _INFLATED), _ONE, _END)),
    _bad("alpha_50_megapixels.png", "too much memory: 400 MB", lambda: _flat(10_000, 5_000, "LA")),
    _bad("turned_50_megapixels.png", "too much memory: 450 MB", lambda: raw.png(
        raw.chunk(b"eXIf", raw.tiff([(274, 3, 1, 6)])), _ONE, size=(10_000, 5_000), colour=0)),
    _bad("lzma.tiff", "unsupported compression: 34925", lambda: raw.tiff(raw.plain_tags(9, 9, 34925))),
    # work without end
    _bad("passes.jpg", "too many scans: 98", lambda: _scans(4_000, 3_000, 88)),
    _bad("chunks.png", "too many pieces", lambda: raw.png(raw.chunk(b"tEXt") * 1_500_000, _ONE, _END)),
    _bad("pixel_chunks.png", "too many pieces", lambda: raw.png(raw.chunk(b"IDAT") * 1_500_000, _ONE, size=(9, 9))),
    _bad("comment.gif", "too many pieces", lambda: raw.gif(9, 9, raw.gif_comment(19_000_000))),
    _bad("padding.jpg", "too many pieces", lambda: b"\xff\xd8" + b"\xff" * 19_000_000),
    _bad("segments.jpg", "too many pieces", lambda: raw.with_segment(jpeg(), 0xFE, b"", 4_000_000)),
    _bad("strips.tiff", "too many pieces", lambda: raw.tiff(
        [*raw.plain_tags(1, 9)[:5], (273, 4, 4_000_000, 8), (278, 4, 1, 1), (279, 4, 4_000_000, 8)],
        bytes(16_000_000))),
    _bad("tags.tiff", "too many pieces", lambda:
        raw.tiff([(1000 + n, 7, 9_000_000, 8) for n in range(20_000)], bytes(9_000_000))),
    _bad("runs_50_megapixels.bmp", "too much memory: 1500 MB", lambda: raw.bmp_of_runs(50_000_000, 1, b"\0\0" * 99)),
    _bad("many_runs.bmp", "too many pieces", lambda: raw.bmp_of_runs(2_500, 2_500, b"\x01\x07" * 2_000_000)),
]  # fmt: skip
"""By kind; sizes and reasons are those under the default limits, 50 MP and 20 MB."""


def mutated(count: int, seed: int) -> Iterator[bytes]:
    """Good files of all formats with bytes flipped, cut out, doubled, or spliced with those of another."""
    rng = np.random.default_rng(seed)
    good = [make(0) for make, _, _ in GOOD.values()]
    for number in range(count):
        data, other = bytearray(good[number % len(good)]), good[int(rng.integers(len(good)))]
        at, until = sorted(int(place) for place in rng.integers(0, len(data), 2))
        match number % 4:
            case 0:
                for place in rng.integers(0, len(data), 1 + number % 9):
                    data[place] = int(rng.integers(256))
            case 1:
                del data[at : min(until, at + 64)]
            case 2:
                data[at:at] = data[at : min(until, at + 64)] * 3
            case 3:
                data[at:] = other[min(at, len(other)) :]
        yield bytes(data)
