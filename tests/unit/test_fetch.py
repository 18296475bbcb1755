from __future__ import annotations

import hashlib
from collections.abc import Callable

import pytest
from PIL import Image

from raycnn.data.decode import BadImage
from raycnn.data.fetch import Tags, read_image

GOOD = b"good"


def reads(*contents: bytes) -> tuple[Callable[[], bytes], list[bytes]]:
    left = list(contents)
    return lambda: left.pop(0), left


def open_image(data: bytes) -> Image.Image:
    if data != GOOD:
        raise BadImage("corrupt")
    return Image.new("RGB", (1, 1))


def no_fault(data: bytes) -> str:
    return ""


@pytest.mark.parametrize(
    ("contents", "left"),
    [((GOOD,), 0), ((b"bad", GOOD), 0), ((b"bad", b"other", GOOD), 0), ((GOOD, b"never read"), 1)],
)
def test_what_is_wrong_is_read_again(contents: tuple[bytes, ...], left: int) -> None:
    read, unread = reads(*contents)
    assert read_image(read, no_fault, open_image)[0] == GOOD
    assert len(unread) == left


@pytest.mark.parametrize("contents", [(b"bad", b"bad", GOOD), (b"1", b"2", b"3", GOOD)])
def test_what_comes_the_same_twice_or_wrong_three_times_is_bad(contents: tuple[bytes, ...]) -> None:
    read, unread = reads(*contents)
    with pytest.raises(BadImage, match="corrupt"):
        read_image(read, no_fault, open_image)
    assert unread == [GOOD]


def test_a_fault_is_told_and_nothing_decoded() -> None:
    read, _ = reads(GOOD, GOOD)
    with pytest.raises(BadImage, match="changed"):
        read_image(read, lambda data: "changed", lambda data: pytest.fail("decoded"))


def test_a_digest_of_the_store_vouches() -> None:
    tags = Tags()
    read, unread = reads(b"flipped", GOOD, GOOD)
    assert tags.vouched(read, hashlib.md5(GOOD).hexdigest()) == GOOD
    assert tags.vouched(read, hashlib.md5(GOOD).hexdigest()) == GOOD
    assert not unread


@pytest.mark.parametrize("tag", ["", "18ab-4", "0" * 32 + "-2"])
def test_tags_that_are_no_digests_cost_nothing(tag: str) -> None:
    read, unread = reads(GOOD, GOOD)
    assert Tags().vouched(read, tag) == GOOD
    assert len(unread) == 1


def test_tags_that_only_look_like_digests_cost_one_read() -> None:
    tags = Tags()
    read, unread = reads(GOOD, GOOD, b"next", b"unread")
    assert tags.vouched(read, "0" * 32) == GOOD
    assert tags.vouched(read, "0" * 32) == b"next"
    assert unread == [b"unread"]
