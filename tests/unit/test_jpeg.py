import io
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image

from raycnn.data import decode as decoding
from raycnn.data.decode import BadImage, Limits, decode
from raycnn.data.jpeg import decode_plain
from tests.support.images import encode, photo

LIMIT = 50_000_000
LIMITS = Limits(LIMIT, LIMIT)


def exif(orientation: int) -> Image.Exif:
    block = Image.Exif()
    block[0x0112] = orientation
    return block


def pillows(data: bytes, monkeypatch: pytest.MonkeyPatch) -> Image.Image:
    """The same image without the way that is tested here."""
    with monkeypatch.context() as patch:
        patch.setattr(decoding, "decode_plain", lambda data, max_pixels: None)
        return decode(data, LIMITS)


PICTURE = photo(0, 251, 187)
PLAIN = {
    "4:2:0": encode(PICTURE, quality=90),
    "4:2:2": encode(PICTURE, quality=75, subsampling="4:2:2"),
    "4:4:4": encode(PICTURE, quality=95, subsampling="4:4:4"),
    "gray": encode(PICTURE[..., 0], quality=90),
    "coarse": encode(PICTURE, quality=5),
    "with restarts": encode(PICTURE, restart_marker_blocks=3),
    "upright by EXIF": encode(PICTURE, exif=exif(1)),
    "with a colour profile": encode(PICTURE, icc_profile=bytes(70_000)),
    "kept as RGB": encode(PICTURE, keep_rgb=True),
    "one pixel": encode(PICTURE[:1, :1]),
    "a comment": encode(PICTURE, comment=b"hello"),
}


@pytest.mark.parametrize("kind", PLAIN)
def test_the_pixels_are_pillows(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    image = decode_plain(PLAIN[kind], LIMIT)
    assert image is not None
    assert (image.mode, decode(PLAIN[kind], LIMITS).format) == ("RGB", "JPEG")
    assert np.array_equal(np.asarray(image), np.asarray(pillows(PLAIN[kind], monkeypatch)))


OTHERS = {
    "progressive": encode(PICTURE, progressive=True),
    "CMYK": encode(Image.fromarray(PICTURE).convert("CMYK")),
    "turned": encode(PICTURE, exif=exif(6)),
    "cut off": PLAIN["4:2:0"][:-200],
    "without its end": PLAIN["4:2:0"][:-2],
    "cut off in the header": PLAIN["4:2:0"][:100],
    "of no length": PLAIN["4:2:0"][:2],
    "bytes between segments": PLAIN["4:2:0"][:2] + b"\0" + PLAIN["4:2:0"][2:],
    "many segments": PLAIN["4:2:0"][:2] + b"\xff\xfe\0\3x" * 100 + PLAIN["4:2:0"][2:],
    "PNG": encode(PICTURE, "PNG"),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_what_is_not_plain_is_left_to_pillow(kind: str) -> None:
    assert decode_plain(OTHERS[kind], LIMIT) is None


def test_a_picture_whose_two_copies_would_not_fit_is_left_to_pillow() -> None:
    needed = 251 * 187 * 8
    assert decode_plain(PLAIN["4:2:0"], needed // 5) is None
    assert decode_plain(PLAIN["4:2:0"], needed // 5 + 1) is not None


def mutated() -> Iterator[bytes]:
    random = np.random.default_rng(3)
    kinds = [*PLAIN.values()]
    for number in range(600):
        data = bytearray(kinds[number % len(kinds)])
        start = 0 if number % 3 else len(data) // 2  # every third one has a good header
        for place in random.integers(start, len(data), 1 + number % 4):
            data[place] = random.integers(256)
        yield bytes(data)


def test_no_verdict_differs_on_600_mutated_files(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = 0
    for data in mutated():
        image = decode_plain(data, LIMIT)
        if image is None:
            continue
        plain += 1
        try:
            expected = pillows(data, monkeypatch)
        except BadImage as bad:
            pytest.fail(f"{bad.reason}: {data[:64]!r}...")
        assert np.array_equal(np.asarray(image), np.asarray(expected))
    assert plain > 100


def test_two_scans_are_left_to_pillow() -> None:
    """A baseline JPEG may have its components in scans of their own; libjpeg keeps all coefficients then."""
    data = PLAIN["4:4:4"]
    at = data.index(b"\xff\xda")
    apart = data[:at] + b"\xff\xda\0\x08\1\1\0\0\x3f\0" + data[at + 2 + int.from_bytes(data[at + 2 : at + 4]) :]
    assert Image.open(io.BytesIO(apart)).size == (251, 187)
    assert decode_plain(apart, LIMIT) is None
