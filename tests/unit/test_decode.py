import resource
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from raycnn.data.decode import BadImage, Limits, check_bytes, decode
from tests.support.images import BROKEN, GOOD, encode, jpeg, pixels

LIMITS = Limits(max_pixels=50_000_000, max_bytes=20_000_000)


@pytest.mark.parametrize("name", GOOD)
def test_odd_but_good_images_are_converted_by_rule(name: str) -> None:
    make, expected, tolerance = GOOD[name]
    image = decode(make(1), LIMITS)
    assert image.mode == "RGB"
    difference = np.abs(np.asarray(image).astype(int) - expected(1))
    assert difference.mean() <= tolerance


@pytest.mark.parametrize("name", BROKEN)
def test_broken_images_get_their_reason(name: str) -> None:
    make, reason = BROKEN[name]
    with pytest.raises(BadImage) as caught:
        decode(make(1), LIMITS)
    assert caught.value.reason == str(caught.value) == reason


def test_a_bomb_is_refused_without_allocating_it() -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(BadImage, match="too many pixels"):
        decode(BROKEN["bomb.png"][0](0), LIMITS)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024  # KiB; the pixels are 1.6 GB


def test_the_format_is_of_the_content() -> None:
    assert decode(GOOD["jpeg_named.png"][0](0), LIMITS).format == "JPEG"
    assert decode(GOOD["palette.png"][0](0), LIMITS).format == "PNG"


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_exif_orientation_ends_upright(orientation: int) -> None:
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # the transpose that makes the stored image
    upright = Image.fromarray(pixels(2))
    stored = upright.transpose(Image.Transpose(undo[orientation])) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    for format_ in ("PNG", "TIFF"):
        assert np.array_equal(np.asarray(decode(encode(stored, format_, exif=exif), LIMITS)), pixels(2)), format_


def test_a_broken_exif_block_loses_no_image() -> None:
    data = encode(pixels(0), exif=b"Exif\0\0MM\0*\xff\xff\xff\xff\x01\x02", quality=90)
    assert np.array_equal(np.asarray(decode(data, LIMITS)), np.asarray(decode(jpeg(0), LIMITS)))


def test_16_bit_gray_is_scaled_from_the_full_range() -> None:
    levels = np.array([[0, 128, 129, 257, 32767, 65406, 65407, 65535]], np.uint16)
    seen = np.asarray(decode(encode(Image.fromarray(levels), "PNG"), LIMITS))[0, :, 0]
    assert np.array_equal(seen, np.round(levels[0] / 257))


def test_bytes_are_checked_before_reading() -> None:
    check_bytes(LIMITS.max_bytes, LIMITS)
    with pytest.raises(BadImage, match="too many bytes: 20 MB"):
        check_bytes(LIMITS.max_bytes + 1, LIMITS)
    with pytest.raises(BadImage, match="too many pixels"):
        decode(jpeg(0), Limits(max_pixels=100, max_bytes=10_000))


def test_500_mutated_files_in_threads_give_a_verdict_each_and_no_warning() -> None:
    rng = np.random.default_rng(7)
    makers = [make for make, _, _ in GOOD.values()]
    mutated = []
    for number in range(500):
        data = bytearray(makers[number % len(makers)](number % 5))
        for place in rng.integers(0, len(data), 1 + number % 7):
            data[place] = rng.integers(256)
        mutated.append(bytes(data[: rng.integers(1, len(data))] if number % 4 == 0 else data))

    def verdict(data: bytes) -> str:
        try:
            return decode(data, LIMITS).mode
        except BadImage as error:
            return error.reason

    with warnings.catch_warnings(record=True) as caught, ThreadPoolExecutor(4) as pool:
        warnings.simplefilter("always")
        verdicts = list(pool.map(verdict, mutated))
    assert not [str(warning.message) for warning in caught]
    assert 100 < verdicts.count("RGB") < 400
    assert verdicts == [verdict(data) for data in mutated]
