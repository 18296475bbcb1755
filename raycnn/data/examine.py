"""Reading every object once: fetch, digest, decode; one verdict per row, however many there are."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from raycnn.data.dataset import quiet
from raycnn.data.decode import BadImage, Limits, check_bytes, decode
from raycnn.data.fetch import Tags, read_image
from raycnn.data.here import FEW_BYTES
from raycnn.data.rowgroups import open_rows
from raycnn.errors import ObjectDamaged, ObjectNotFound, StorageError

VERDICTS: Final = pa.schema(
    [
        ("row", pa.int64()),
        ("reason", pa.string()),  # null: a good image
        ("sha256", pa.binary(32)),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("format", pa.string()),
    ]
)
"""What reading said of each row. The row _FAILED carries a StorageError as JSON instead."""


_FAILED: Final = -1
_COLUMNS: Final = ("row", "key", "offset", "length", "size", "etag")
_ROWS_PER_BLOCK: Final = 256
_MAX_BLOCKS: Final = 4096
_DECODES_AT_ONCE: Final = 2  # per task; more would only add to its memory


@dataclass(frozen=True)
class Examiner:
    """Fetches and decodes rows.

    Args:
        root: uri that the keys are relative to.
        limits: what is refused unread or undecoded.
        threads: objects that one task fetches at the same time.
    """

    root: str
    limits: Limits
    threads: int

    def examine(self, rows: pa.Table, ray: Callable[[], None] = lambda: None) -> Iterator[pa.Table]:
        """VERDICTS of the rows (row, key, offset, length, size, etag), block by block, in any order.

        Little is read here, much by Ray Data once `ray` has returned.

        Raises:
            StorageError: the store itself failed; a single missing or broken object is a verdict, not an error.
        """
        rows = rows.select(_COLUMNS)
        size = max(_ROWS_PER_BLOCK, -(-len(rows) // _MAX_BLOCKS))
        blocks = [rows.slice(start, size).combine_chunks() for start in range(0, len(rows), size)]
        if (pc.sum(rows["length"]).as_py() or 0) <= FEW_BYTES:
            yield from map(self.verdicts, blocks)
        else:
            ray()
            yield from self._through_ray(blocks)

    def verdicts(self, rows: pa.Table) -> pa.Table:
        """VERDICTS of one block of rows, in their order; errors as `examine`."""
        decoding, tags = threading.Semaphore(_DECODES_AT_ONCE), Tags()
        with ThreadPoolExecutor(self.threads) as pool:
            verdicts = pool.map(lambda row: self._verdict(row, decoding, tags), rows.to_pylist())
            return pa.Table.from_pylist(list(verdicts), VERDICTS)

    def outcome(self, rows: pa.Table) -> pa.Table:
        """As `verdicts`; a failure is a row, since Ray Data would wrap, print and retry an exception."""
        try:
            return self.verdicts(rows)
        except StorageError as error:
            told = {"what": error.what, "where": error.where, "fix": error.fix}
            return pa.Table.from_pylist([{"row": _FAILED, "reason": json.dumps(told)}], VERDICTS)

    def _through_ray(self, blocks: list[pa.Table]) -> Iterator[pa.Table]:
        import ray

        dataset = ray.data.from_arrow(blocks).map_batches(self.outcome, batch_size=None, batch_format="pyarrow")
        quiet(dataset.context)
        for block in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
            yield checked(block)

    def _verdict(self, row: dict[str, Any], decoding: threading.Semaphore, tags: Tags) -> dict[str, Any]:
        seen: dict[str, Any] = {"row": row["row"]}
        whole = row["length"] == row["size"]

        def get() -> bytes:
            return open_rows(self.root).get(row["key"], row["offset"], row["length"])

        def fault(data: bytes) -> str:
            seen.pop("sha256", None)
            if len(data) != row["length"]:
                return "changed while it was read"
            seen["sha256"] = hashlib.sha256(data).digest()
            return ""

        def open_image(data: bytes) -> Image.Image:
            with decoding:
                return decode(data, self.limits)

        try:
            check_bytes(row["length"], self.limits)
            _, image = read_image(lambda: tags.vouched(get, row["etag"] or "") if whole else get(), fault, open_image)
        except ObjectNotFound:
            return seen | {"reason": "missing"}
        except ObjectDamaged:
            return seen | {"reason": "damaged on its way"}
        except BadImage as bad:
            return seen | {"reason": bad.reason}
        return seen | {"width": image.width, "height": image.height, "format": image.format}


def checked(verdicts: pa.Table) -> pa.Table:
    """The block itself.

    Raises:
        StorageError: it tells of a failure of the store.
    """
    if len(verdicts) and verdicts["row"][0].as_py() == _FAILED:
        raise StorageError(**json.loads(verdicts["reason"][0].as_py()))
    return verdicts.cast(VERDICTS)
