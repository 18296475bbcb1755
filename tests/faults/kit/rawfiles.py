"""Image files put together byte by byte, as no encoder writes them."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable

PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
PIXELS = zlib.compress(bytes(1 + 3) * 1)  # of a PNG of one black pixel

Tag = tuple[int, int, int, int]
"""Of a TIFF: number, type (3 short, 4 long, 7 bytes), count, value or offset."""


def chunk(kind: bytes, payload: bytes = b"", crc: int | None = None) -> bytes:
    """A PNG chunk, with its right checksum or the one given."""
    checksum = zlib.crc32(kind + payload) if crc is None else crc
    return struct.pack(">I", len(payload)) + kind + payload + struct.pack(">I", checksum)


def png(*chunks: bytes, size: tuple[int, int] = (1, 1), depth: int = 8, colour: int = 2) -> bytes:
    """A PNG of these chunks behind its header."""
    return PNG_MAGIC + chunk(b"IHDR", struct.pack(">IIBBBBB", *size, depth, colour, 0, 0, 0)) + b"".join(chunks)


def tiff(tags: Iterable[Tag], body: bytes = b"", magic: bytes = b"II*\0") -> bytes:
    """A TIFF with one directory; `body` starts at byte 8."""
    entries = b"".join(struct.pack("<HHII", *tag) for tag in sorted(tags))
    directory = struct.pack("<H", len(entries) // 12) + entries + bytes(4)
    return magic + struct.pack("<I", 8 + len(body)) + body + directory


def plain_tags(width: int, height: int, compression: int = 1, count: int = 0) -> list[Tag]:
    """Tags of a gray TIFF whose one strip starts at byte 8."""
    return [
        (256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 8), (259, 3, 1, compression), (262, 3, 1, 1),
        (273, 4, 1, 8), (277, 3, 1, 1), (278, 4, 1, height), (279, 4, 1, count or width * height),
    ]  # fmt: skip


def gif(width: int, height: int, *blocks: bytes, frame: tuple[int, int] | None = None) -> bytes:
    """A GIF of two colours: `blocks`, and one frame (of the whole size by default) without pixels."""
    screen = b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + bytes(3) + b"\xff" * 3
    image = b"," + struct.pack("<HHHHB", 0, 0, *(frame or (width, height)), 0) + b"\x02\x00"
    return screen + b"".join(blocks) + image + b";"


def gif_comment(num_bytes: int) -> bytes:
    """A comment in blocks of 255 bytes."""
    return b"!\xfe" + (b"\xff" + b"c" * 255) * (num_bytes // 255) + b"\0"


def bmp_of_runs(width: int, height: int, runs: bytes, compression: int = 1) -> bytes:
    """A BMP of 256 colours in run-length encoding."""
    depth = 8 if compression == 1 else 4
    palette = bytes(4 * (1 << depth))
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, depth, compression, len(runs), 0, 0, 1 << depth, 0)
    start = 14 + len(header) + len(palette)
    return b"BM" + struct.pack("<IHHI", start + len(runs), 0, 0, start) + header + palette + runs


def webp_canvas(width: int, height: int) -> bytes:
    """A WebP that claims a canvas (up to 16777216 a side) and has nothing on it."""
    payload = b"\x10\0\0\0" + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    body = b"WEBPVP8X" + struct.pack("<I", 10) + payload
    return b"RIFF" + struct.pack("<I", len(body)) + body


def iso_media(brand: bytes) -> bytes:
    """The first box of a HEIC, AVIF or JPEG XL file."""
    return struct.pack(">I", 24) + b"ftyp" + brand + bytes(4) + b"mif1" + brand + bytes(64)


def with_segment(jpeg: bytes, marker: int, payload: bytes, count: int = 1) -> bytes:
    """A JPEG with another segment, `count` times, behind its first marker."""
    return jpeg[:2] + (bytes([0xFF, marker]) + struct.pack(">H", len(payload) + 2) + payload) * count + jpeg[2:]


def directory_bomb(tags: int, num_bytes: int) -> bytes:
    """An EXIF block whose tags all name the same bytes: read one by one they are `tags` times as long."""
    entries = [(1000 + number, 7, num_bytes, 8) for number in range(tags)]
    return b"Exif\0\0" + tiff(entries, bytes(num_bytes))
