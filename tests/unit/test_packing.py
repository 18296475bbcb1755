from __future__ import annotations

import io
import json
import tarfile
from typing import Any

import numpy as np
import pytest
from PIL import Image

from raycnn.config import ShardsConfig
from raycnn.data.decode import Limits, decode
from raycnn.data.jpeg import decode_plain
from raycnn.data.packing import Archive, packed
from tests.support.images import encode, photo

LIMIT = 50_000_000
PICTURE = photo(0, 400, 300)


def pack(data: bytes, **settings: Any) -> bytes:
    return packed(data, decode(data, Limits(LIMIT, LIMIT)), ShardsConfig(**settings), LIMIT)


@pytest.mark.parametrize(
    "data",
    [
        encode(PICTURE, quality=95),
        encode(PICTURE, quality=95, progressive=True),
        encode(PICTURE, "PNG"),
        encode(PICTURE[..., 0], "PNG"),
        encode(Image.fromarray(PICTURE).convert("CMYK")),
    ],
)
def test_what_is_large_or_no_plain_jpeg_becomes_one_with_the_short_side_told(data: bytes) -> None:
    small = decode_plain(pack(data, short_side=150), LIMIT)
    assert small is not None
    assert small.size == (200, 150)
    expected = decode(data, Limits(LIMIT, LIMIT)).resize((200, 150), Image.Resampling.BICUBIC)
    pillows = decode(encode(expected, quality=90), Limits(LIMIT, LIMIT))
    assert difference(small, expected) < 1.05 * difference(pillows, expected)


def difference(one: Image.Image, other: Image.Image) -> float:
    return float(np.mean((np.asarray(one, float) - np.asarray(other, float)) ** 2))


def test_a_small_plain_jpeg_stays_and_another_small_image_keeps_its_size() -> None:
    data = encode(PICTURE, quality=95)
    assert pack(data, short_side=300) is data
    small = decode_plain(pack(encode(PICTURE, "PNG"), short_side=300), LIMIT)
    assert small is not None
    assert small.size == (400, 300)


def test_a_worse_quality_takes_fewer_bytes() -> None:
    data = encode(PICTURE, "PNG")
    assert len(pack(data, quality=50)) < 0.6 * len(pack(data))


@pytest.mark.parametrize("format_", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_kept_bytes_stay_and_are_named_for_what_they_are(format_: str) -> None:
    data = encode(PICTURE, format_)
    assert pack(data, keep_bytes=True) is data
    archive = Archive()
    offset = archive.add("a", data, None, {})
    whole = archive.close()
    assert whole[offset : offset + len(data)] == data
    suffix = {"JPEG": "jpg", "TIFF": "tif"}.get(format_, format_.lower())
    with tarfile.open(fileobj=io.BytesIO(whole)) as tar:
        assert tar.getnames() == [f"a.{suffix}", "a.json"]


def test_an_archive_holds_its_samples_as_webdataset_reads_them() -> None:
    archive, images = Archive(), [encode(PICTURE, quality=quality) for quality in (10, 50)]
    offsets = [archive.add(f"{n}", image, n, {"label": "é"}) for n, image in enumerate(images)]
    whole = archive.close()
    assert [whole[at : at + len(image)] for at, image in zip(offsets, images, strict=True)] == images
    with tarfile.open(fileobj=io.BytesIO(whole)) as tar:
        assert tar.getnames() == ["0.jpg", "0.cls", "0.json", "1.jpg", "1.cls", "1.json"]
        contents = [tar.extractfile(name).read() for name in tar.getnames()]  # type: ignore[union-attr]
    assert contents[1::3] == [b"0", b"1"]
    assert [json.loads(each) for each in contents[2::3]] == [{"label": "é"}] * 2
