"""Images whose bytes may be cut or flipped on their way: what is wrong with them is read again before it counts."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from typing import Final

from PIL import Image

from raycnn.data.decode import BadImage
from raycnn.storage import open_images
from raycnn.storage.local import LocalStore

_READS: Final = 3
_OF_A_DIRECTORY, _OF_A_STORE = 2, 16
_MD5: Final = re.compile(r"[0-9a-f]{32}")

Read = Callable[[], bytes]


def threads_for(source: str, wanted: int | None) -> int:
    """How many objects a task reads at the same time: what is wanted, or what suits the kind of source."""
    return wanted or (_OF_A_STORE if is_remote(source) else _OF_A_DIRECTORY)


def is_remote(source: str) -> bool:
    """Whether a source is no directory."""
    return not isinstance(open_images(source), LocalStore)


def read_image(
    read: Read, fault: Callable[[bytes], str], open_image: Callable[[bytes], Image.Image]
) -> tuple[bytes, Image.Image]:
    """An object's bytes and the image they are.

    What lies broken in the store comes the same each time, and is judged when two reads agree.

    Args:
        read: one read of the object.
        fault: what is wrong with the bytes as such, "" if nothing; they are not decoded then.
        open_image: decodes; raises BadImage.

    Raises:
        BadImage: what the last read was judged to be.
    """
    before: bytes | None = None
    for reads in range(1, _READS + 1):
        data = read()
        try:
            if reason := fault(data):
                raise BadImage(reason)
            return data, open_image(data)
        except BadImage:
            if data == before or reads == _READS:
                raise
        before = data
    raise AssertionError


class Tags:
    """Whether a store's tags are MD5 digests, as S3's are of objects that went up whole and without KMS; learned."""

    def __init__(self) -> None:
        self._digests = True

    def vouched(self, read: Read, tag: str) -> bytes:
        """The whole object; one that is not what its tag says is read again."""
        data = read()
        if not self._digests or not _MD5.fullmatch(tag) or _md5(data) == tag:
            return data
        again = read()
        if again == data:
            self._digests = False
        return again


def _md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()
