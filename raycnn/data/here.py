"""Blocks of an order read by this process, where they are few: by then Ray Data has not even started."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from raycnn.data.reader import ImageReader, Images
from raycnn.errors import RaycnnError, encode_error

if TYPE_CHECKING:
    from raycnn.data.dataset import Order

Block = dict[str, npt.NDArray[Any]]
FEW_BYTES: Final = 128 << 20
"""So many bytes of images are fetched and decoded by two threads in about the time that Ray Data takes to start."""


def are_few(table: pa.Table, order: Order) -> bool:
    """Whether the images of an order over the rows of the table have no more than FEW_BYTES."""
    if not order.num_blocks:
        return True
    rows = order.num_blocks * len(order.block(0)[0])  # the last block may have fewer
    return rows * float(pc.mean(table["length"]).as_py() or 0) <= FEW_BYTES


def read_block(reader: ImageReader, table: pa.Table, order: Order, number: int) -> Block:
    """The images of one block, and what reading said of each; a RaycnnError travels as data, in the column error."""
    rows, epochs = order.block(number)
    error = ""
    try:
        read = reader.read(table, rows, epochs)
    except RaycnnError as failure:
        error = encode_error(failure)
        read = Images(np.zeros((len(rows), *reader.shape), np.uint8), [""] * len(rows), 0, 0)
    return {
        "image": read.images_NHWC,
        "row": rows,
        "reason": np.array(read.reasons, dtype=np.str_),
        "error": np.array([error] * len(rows), dtype=np.str_),
        "fetch_s": np.full(len(rows), read.fetch_s / len(rows)),
        "decode_s": np.full(len(rows), read.decode_s / len(rows)),
        "cached": np.full(len(rows), read.kept / len(rows)),
    }


@dataclass(frozen=True)
class BlocksHere:
    """Iterates as the dataset of `raycnn.data.dataset.blocks` does."""

    reader: ImageReader
    table: pa.Table
    order: Order
    first: int
    last: int

    def iter_batches(self, *, batch_size: int | None, **_: Any) -> Iterator[Block]:
        """Blocks in their order, or batches of them, one block read ahead."""
        with ThreadPoolExecutor(1) as pool:
            numbers = range(self.first, self.last)
            reads = (pool.submit(read_block, self.reader, self.table, self.order, number) for number in numbers)
            read = next(reads, None)
            while read is not None:
                block, read = read.result(), next(reads, None)
                size = batch_size or len(block["row"])
                for start in range(0, len(block["row"]), size):
                    yield {name: column[start : start + size] for name, column in block.items()}
