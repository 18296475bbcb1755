"""Manifests as they should not be, each with its verdict: how the index ends, or what becomes of the rows."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tests.faults.kit.confined import Job
from tests.support.images import jpeg

GOOD = 12  # images 00.jpg to 11.jpg lie beside the manifest
_CSV = "key,label\n" + "".join(f"{n:02}.jpg,{'cat' if n % 2 else 'dog'}\n" for n in range(GOOD))


@dataclass(frozen=True)
class Case:
    """One kind of manifest, below 20 MB, and what `verdict` says of it (with "..." for what it need not say)."""

    name: str
    make: Callable[[], bytes]
    verdict: str


def rows(*more: str, kept: int = GOOD) -> Callable[[], bytes]:
    """The good CSV with lines added, and only `kept` of its own."""
    return lambda: ("\n".join(_CSV.splitlines()[: kept + 1]) + "\n" + "".join(f"{line}\n" for line in more)).encode()


def parquet(**columns: Any) -> bytes:
    """Parquet of these columns; `key` names the good images where it is not given."""
    table = pa.table({"key": [f"{n:02}.jpg" for n in range(GOOD)], **columns})
    return packed(table)


def packed(table: pa.Table, **options: Any) -> bytes:
    """A table as Parquet."""
    buffer = BytesIO()
    pq.write_table(table, buffer, **options)
    return buffer.getvalue()


def _repeated(text: str, count: int) -> pa.Array:
    return pa.DictionaryArray.from_arrays(pa.array(np.zeros(count, np.int32)), pa.array([text]))


def _many_rows() -> bytes:
    """30 million equal rows in a few KB: 700 MB unpacked."""
    return packed(pa.table({"key": _repeated("00.jpg", 30_000_000), "label": _repeated("cat", 30_000_000)}))


def _long_text() -> bytes:
    """One text of a megabyte, 4,000 times: 4 GB unpacked."""
    count = 4_000
    return packed(pa.table({"key": _repeated("00.jpg", count), "label": _repeated("c" * 1_000_000, count)}))


def _text_list() -> bytes:
    values = _repeated("c" * 1_000_000, 4_000)
    return packed(
        pa.table({"key": ["00.jpg"], "label": pa.ListArray.from_arrays(pa.array([0, 4_000], pa.int32()), values)})
    )


def _two_keys() -> bytes:
    table = pa.table({"key": ["00.jpg"], "label": ["cat"], "other": ["x"]})
    return packed(table.rename_columns(["key", "label", "key"]))


def _ends(name: str, verdict: str, make: Callable[[], bytes]) -> Case:
    return Case(name, make, verdict)


_LABELS = [["cat", "dog"][n % 2] for n in range(GOOD)]
_TRICKS = ["../00.jpg", "/etc/passwd", "a/../../00.jpg", "s3://other/00.jpg", "file:///etc/passwd", "a\\b.jpg", "//h/x"]

MANIFESTS: list[Case] = [
    _ends("good.csv", "12 rows", rows()),
    _ends("traversal.csv", "12 rows, 7 x unsafe key", rows(*(f"{key},cat" for key in _TRICKS))),
    _ends("nul.parquet", "10 rows, 2 x unsafe key", lambda: parquet(
        key=[*(f"{n:02}.jpg" for n in range(10)), "00.jpg\0", "\0"], label=_LABELS)),
    _ends("long_key.csv", "12 rows, 1 x unsafe key", rows("k" * 1025 + ",cat")),
    _ends("empty_key.csv", "12 rows, 1 x unsafe key", rows(",cat")),
    _ends("duplicates.csv", "12 rows, 3 x listed twice", rows("00.jpg,cat", "00.jpg,dog", "01.jpg,cat")),
    _ends("missing.csv", "12 rows, 1 x missing", rows("none.jpg,cat")),
    _ends("empty_labels.csv", "9 rows, 3 x no label", rows("09.jpg,", "10.jpg,", "11.jpg,", kept=9)),
    _ends("no_labels.csv", "3: 12 of 12 images cannot be used...", lambda: b"key,label\n" + b"".join(
        b"%02d.jpg,\n" % n for n in range(GOOD))),
    _ends("one_class.csv", "3: one class only: cat...", lambda: _CSV.replace("dog", "cat").encode()),
    _ends("10000_classes.csv", "3: 9988 of 10000 images cannot be used...", lambda: b"key,label\n" + b"".join(
        b"%02d.jpg,class %d\n" % (n, n) for n in range(10_000))),
    _ends("emoji.csv", "12 rows", lambda: _CSV.replace("cat", "👩‍🚀 ネコ").encode()),
    _ends("bidi.csv", "3: one class only: \\u202ecat...", lambda:
        _CSV.replace("dog", "cat").replace("cat", "\u202ecat").encode()),
    _ends("look_alike.csv", "3: two classes that look the same: ...", lambda: _CSV.replace("cat", "caf\u00e9").replace(
        "dog", "cafe\u0301").encode()),
    _ends("class_as_path.csv", "12 rows", lambda: _CSV.replace("cat", "../../cat").replace("dog", "/dog\\").encode()),
    _ends("wrong_magic.parquet", "3: not a readable PARQUET file...", lambda: _CSV.encode()),
    _ends("cut.parquet", "3: not a readable PARQUET file...", lambda: parquet(label=_LABELS)[:-30]),
    _ends("no_rows.csv", "3: no rows...", lambda: b"key,label\n"),
    _ends("no_rows.parquet", "3: no rows...", lambda: packed(
        pa.table({"key": pa.array([], pa.string()), "label": pa.array([], pa.string())}))),
    _ends("empty.csv", "3: not a readable CSV file...", lambda: b""),
    _ends("empty.parquet", "3: not a readable PARQUET file...", lambda: b""),
    _ends("missing_column.csv", "3: no column label (...", lambda: b"key,class\n00.jpg,cat\n"),
    _ends("missing_column.parquet", "3: no column label (...", lambda: parquet(target=_LABELS)),
    _ends("two_keys.parquet", "3: two columns key (...", _two_keys),
    _ends("two_keys.csv", "3: two columns key (...", lambda: b"key,label,key\n00.jpg,cat,01.jpg\n"),
    _ends("quote.csv", "3: not a readable CSV file...", rows('"00.jpg,cat', "x,y,z")),
    _ends("columns.csv", "3: not a readable CSV file...", rows("a,b,c" + "d" * 100_000)),
    _ends("not_utf8.csv", "3: not a readable CSV file...", lambda: _CSV.encode() + b"\xff\xfe.jpg,cat\n"),
    _ends("utf16.csv", "3: ...", lambda: _CSV.encode("utf-16")),
    _ends("split.csv", "3: unknown split 'holdout'...", lambda: b"key,label,split\n00.jpg,cat,holdout\n"),
    _ends("offsets.csv", "3: not a readable CSV file...", lambda: b"key,label,offset\n00.jpg,cat,x\n"),
    _ends("range.parquet", "8 rows, 4 x outside its object", lambda: parquet(
        label=_LABELS,
        offset=[None] * 8 + [2**63 - 1, -5, 1, 2**62],
        length=[None] * 8 + [10, 10, -1, 2**62])),
    _ends("wrong_type.parquet", "3: a column of the wrong type...", lambda:
        parquet(label=_LABELS, offset=["x"] * GOOD)),
    _ends("key_list.parquet", "3: a column of the wrong type...", lambda:
        parquet(key=[["00.jpg"]] * GOOD, label=_LABELS)),
    _ends("label_struct.parquet", "3: labels of type struct...", lambda: parquet(label=[{"a": 1}] * GOOD)),
    _ends("label_lists.parquet", "3: labels of type list...", lambda: parquet(label=[[["a"]]] * GOOD)),
    _ends("label_bytes.parquet", "3: labels of type binary...", lambda: parquet(label=[b"\xff"] * GOOD)),
    _ends("label_null.parquet", "3: 12 of 12 images cannot be used...", lambda: parquet(label=pa.nulls(GOOD))),
    _ends("label_mixture.csv", "3: no validation images...", lambda:
        b"key,label\n00.jpg,1.5\n01.jpg,cat;2\n"),
    _ends("label_not_a_number.parquet", "6 rows, 6 x no label", lambda: parquet(
        label=[float("nan"), 1.0, float("inf"), 2.0] * 3)),
    _ends("many_rows.parquet", "3: not a readable PARQUET file...240 MB when unpacked, and 0.2 MB packed", _many_rows),
    _ends("long_text.parquet", "3: not a readable PARQUET file...more than 50 times its size...", _long_text),
    _ends("long_text_in_list.parquet", "3: not a readable PARQUET file...more than 50 times its size...", _text_list),
]  # fmt: skip
"""By kind. With a budget that lets half of the rows be bad."""


def index_of(folder: Path, name: str) -> str:
    """How the index of a manifest ends: "CODE: line", or its rows and how many were refused for which reason."""
    from raycnn.config import load_config
    from raycnn.data.index import build_index
    from raycnn.errors import RaycnnError
    from raycnn.storage import open_store

    data = {"source": f"{folder}/{name}", "bad_image_budget": 0.5, "val_fraction": 0.3, "test_fraction": 0.0}
    config = load_config(
        {
            "run": {"name": "a", "storage": f"{folder}/runs"},
            "data": data | {"stratify": True},
            "model": {"name": "reference/lenet"},
        }
    )
    try:
        index = build_index(config, open_store(config.run.storage), lambda done, total: None)
    except RaycnnError as error:
        return f"{error.code}: {error}"
    reasons = Counter(index.quarantine["reason"].to_pylist())
    return ", ".join([f"{len(index.manifest)} rows", *(f"{count} x {reason}" for reason, count in reasons.items())])


def indexing() -> Iterator[Job]:
    """Every manifest through the index, in a folder with the images."""
    with tempfile.TemporaryDirectory() as parent:
        for case in [MANIFESTS[0], *MANIFESTS]:  # the first one twice: once for all that is imported
            folder = Path(parent) / "images"
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            for number in range(GOOD):
                (folder / f"{number:02}.jpg").write_bytes(jpeg(number))
            yield case.name, lambda case=case, folder=folder: _prepared(case, folder)  # type: ignore[misc]


def _prepared(case: Case, folder: Path) -> Callable[[], str]:
    (folder / case.name).write_bytes(case.make())

    def work() -> str:
        verdict = index_of(folder, case.name)
        stray = [path for path in folder.parent.rglob("*") if path.is_file() and path.parent != folder]
        outside = [str(path) for path in stray if folder / "runs" not in path.parents]
        return verdict if not outside else json.dumps(outside)

    return work


def mutated_parquet(count: str, seed: str) -> Iterator[Job]:
    """A good Parquet manifest with bytes changed, through `read_table`."""
    from raycnn.data.tables import read_table
    from raycnn.errors import DataError

    rng = np.random.default_rng(int(seed))
    good = parquet(label=_LABELS, split=["train"] * GOOD)

    def work(path: str) -> str:
        try:
            return f"{len(read_table(path, ('key', 'label')))} rows"
        except DataError as error:
            return f"3: {error}"

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.parquet"

        def prepared(data: bytes) -> Callable[[], str]:
            path.write_bytes(data)
            return lambda: work(str(path))

        for number in range(int(count)):
            data = bytearray(good)
            for place in rng.integers(0, len(data), number % 9):
                data[place] = int(rng.integers(256))
            yield f"mutated {number}", lambda data=bytes(data): prepared(data)  # type: ignore[misc]
