from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raycnn.data.decode import Limits
from raycnn.data.examine import Examiner
from raycnn.data.rowgroups import RowBytes, is_group, open_rows
from raycnn.data.sources import Source, class_names, list_images, read_source
from raycnn.errors import DataError
from raycnn.storage import open_store
from tests.support.images import BROKEN, jpeg

PLAIN: dict[str, Any] = {"compression": "none", "use_dictionary": False}
PACKED: dict[str, dict[str, Any]] = {
    "snappy": {"compression": "snappy", "use_dictionary": True},
    "zstd": {"compression": "zstd"},
    "dictionary": {"use_dictionary": True},
}
LAYOUTS = {"plain": PLAIN, "plain, pages of version 2": {**PLAIN, "data_page_version": "2.0"}, **PACKED}


def images(number: int = 7) -> list[bytes]:
    return [jpeg(seed) for seed in range(number)]


def embedded(paths: Sequence[str | None] | None = None, number: int = 7, **columns: Any) -> pa.Table:
    """A table as `datasets` writes it."""
    names = paths if paths is not None else [f"{n}.jpg" for n in range(number)]
    cells = [{"bytes": data, "path": name} for data, name in zip(images(len(names)), names, strict=True)]
    columns = columns or {"label": [("cat", "dog")[n % 2] for n in range(len(names))]}
    return pa.table({"image": cells, **columns})


def write(path: Path, table: pa.Table, **options: Any) -> str:
    path.parent.mkdir(exist_ok=True, parents=True)
    pq.write_table(table, path, row_group_size=3, **{**PLAIN, **options})
    return str(path)


def rows(found: Source) -> list[dict[str, Any]]:
    listed: list[dict[str, Any]] = found.rows.to_pylist()
    return listed


def read(found: Source) -> list[bytes]:
    reader = RowBytes(open_store(found.root))
    return [reader.get(row["key"], row["offset"], row["length"]) for row in rows(found)]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_row_is_the_bytes_of_its_image(tmp_path: Path, layout: str) -> None:
    found = read_source(write(tmp_path / "a.parquet", embedded(), **LAYOUTS[layout]))
    assert read(found) == images()
    assert {is_group(row["key"]) for row in rows(found)} == {layout in PACKED}
    assert (found.kind, found.classes, found.root) == ("class", ("cat", "dog"), str(tmp_path))
    assert [row["name"] for row in rows(found)] == ["cat", "dog"] * 3 + ["cat"]
    assert [row["alias"] for row in rows(found)] == [f"{n}.jpg" for n in range(7)]


def test_what_lies_plain_in_a_file_is_read_from_it_as_from_any_object(tmp_path: Path) -> None:
    found = read_source(write(tmp_path / "a.parquet", embedded()))
    data = (tmp_path / "a.parquet").read_bytes()
    assert [data[row["offset"] :][: row["length"]] for row in rows(found)] == images()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_pages_of_any_size_columns_of_binary_and_values_that_may_not_be_null(tmp_path: Path, layout: str) -> None:
    for number, nullable in enumerate((True, False)):
        field = pa.field("jpg", pa.large_binary() if nullable else pa.binary(), nullable)
        table = pa.table(
            [pa.array(images(), field.type), pa.array([0.5] * 7)], pa.schema([field, ("label", "float64")])
        )
        file = write(tmp_path / f"{number}.parquet", table, data_page_size=1, write_batch_size=1, **LAYOUTS[layout])
        found = read_source(file)
        assert found.kind == "number"
        assert read(found) == images()
        assert [row["alias"] for row in rows(found)] == [f"{number}.parquet/{n}" for n in range(7)]


def test_files_of_a_folder_are_one_source_and_names_say_the_split(tmp_path: Path) -> None:
    for n, name in enumerate(("data/train-00000-of-00002", "data/train-00001-of-00002", "data/test-00000-of-00001")):
        write(tmp_path / f"{name}.parquet", embedded([f"{n}{i}" for i in range(2)]), **(PACKED["snappy"] if n else {}))
    (tmp_path / "README.md").write_text("about")
    found = read_source(str(tmp_path))
    assert [(row["alias"], row["split"]) for row in rows(found)] == [
        ("20", "test"), ("21", "test"), ("00", "train"), ("01", "train"), ("10", "train"), ("11", "train")
    ]  # fmt: skip
    assert read(found) == [jpeg(0), jpeg(1)] * 3
    write(tmp_path / "data" / "more.parquet", embedded(["30"]))
    assert {row["split"] for row in rows(read_source(str(tmp_path)))} == {None}


def test_columns_say_split_group_and_name(tmp_path: Path) -> None:
    told = {"split": ["Validation", "train"], "group": ["p1", ""], "key": ["cat/a", "dog/b"], "label": [3, 10]}
    found = read_source(write(tmp_path / "train.parquet", embedded(["x", "x"], **told)))
    assert [(row["split"], row["group"], row["alias"]) for row in rows(found)] == [
        ("val", "p1", "cat/a"),
        ("train", None, "dog/b"),
    ]
    assert found.classes == ("3", "10")


def test_a_name_that_two_rows_have_is_none(tmp_path: Path) -> None:
    found = read_source(write(tmp_path / "a.parquet", embedded(["x", None, "x", "", "y"])))
    assert [row["alias"] for row in rows(found)] == ["a.parquet/0", "a.parquet/1", "a.parquet/2", "a.parquet/3", "y"]


@pytest.mark.parametrize("several", [False, True])
def test_classes_by_the_names_in_the_schema(tmp_path: Path, several: bool) -> None:
    feature: dict[str, Any] = {"names": ["dog", "cat"], "_type": "ClassLabel"}
    labels: list[Any] = [1, 0, -1, None, 1]
    if several:
        feature, labels = {"feature": feature, "_type": "List"}, [[1, 0], [0], None, [], [1]]
    table = embedded([str(n) for n in range(5)], labels=labels)
    told = json.dumps({"info": {"features": {"labels": feature}}}).encode()
    file = write(tmp_path / "a.parquet", table.replace_schema_metadata({b"huggingface": told}))
    found = read_source(file)
    assert (found.kind, found.classes) == ("classes" if several else "class", ("cat", "dog"))
    names = ["cat;dog", "dog", "", "", "cat"] if several else ["cat", "dog", None, None, "cat"]
    reasons = [None, None, "no label", None if several else "no label", None]
    assert [(row["name"], row["reason"]) for row in rows(found)] == list(zip(names, reasons, strict=True))
    assert class_names(file) == {"cat", "dog"}


@pytest.mark.parametrize("layout", ["plain", "snappy"])
def test_a_row_without_bytes_is_told_and_a_broken_image_is_quarantined(tmp_path: Path, layout: str) -> None:
    broken = BROKEN["truncated.jpg"][0](0)
    cells = [{"bytes": data, "path": str(n)} for n, data in enumerate((jpeg(0), None, broken, jpeg(1)))]
    table = pa.table({"image": [*cells, None], "label": ["a", "b", "a", "b", "a"]})
    found = read_source(write(tmp_path / "a.parquet", table, **LAYOUTS[layout]))
    assert [row["reason"] for row in rows(found)] == [None, "no image", None, None, "no image"]
    usable = found.rows.filter(found.rows["reason"].is_null())
    usable = usable.append_column("row", pa.array(np.arange(len(usable))))
    verdicts = Examiner(found.root, Limits(10**6, 10**6), 2).verdicts(usable)
    assert [reason and reason[:9] for reason in verdicts["reason"].to_pylist()] == [
        None,
        BROKEN["truncated.jpg"][1][:9],
        None,
    ]


def test_a_manifest_is_none_and_images_without_labels_can_be_listed(tmp_path: Path) -> None:
    (tmp_path / "cat.jpg").write_bytes(jpeg())
    listed = pa.table({"key": ["cat.jpg"], "label": ["cat"], "bytes": [5]})
    assert rows(read_source(write(tmp_path / "list.parquet", listed)))[0]["key"] == "cat.jpg"
    for source in (write(tmp_path / "in" / "a.parquet", pa.table({"bytes": images(2)})), str(tmp_path / "in")):
        root, table = list_images(source)
        assert root == str(tmp_path / "in")
        assert [open_rows(root).get(row["key"], row["offset"], row["length"]) for row in table.to_pylist()] == images(2)
        assert table["alias"].to_pylist() == ["a.parquet/0", "a.parquet/1"]


def test_what_cannot_be_used_ends_in_one_line(tmp_path: Path) -> None:
    def refused(text: str, name: str = "a.parquet") -> None:
        with pytest.raises(DataError, match=text) as caught:
            read_source(str(tmp_path / "s"))
        assert caught.value.where == f"{tmp_path}/s/{name}"

    write(tmp_path / "s" / "a.parquet", pa.table({"photo": images(), "label": [1] * 7}))
    refused("no column with the bytes of images")
    write(tmp_path / "s" / "a.parquet", pa.table({"image": images()}))
    refused("no column label")
    file = Path(write(tmp_path / "s" / "a.parquet", embedded()))
    file.write_bytes(file.read_bytes()[:-50])
    refused("not a readable Parquet file")
    file = Path(write(tmp_path / "s" / "a.parquet", embedded(), compression="zstd"))
    data = file.read_bytes()
    file.write_bytes(data[:4] + bytes(500) + data[504:])
    refused("not a readable Parquet file")
    write(tmp_path / "s" / "a.parquet", embedded())
    write(tmp_path / "s" / "b.parquet", embedded(["x"], label=[4]))
    refused("another schema than a.parquet", "b.parquet")


def test_a_row_group_that_is_too_large_to_unpack_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raycnn.data.embedded.MAX_GROUP_BYTES", 100)
    assert len(rows(read_source(write(tmp_path / "a.parquet", embedded())))) == 7
    with pytest.raises(DataError, match="of images in one row group"):
        read_source(write(tmp_path / "a.parquet", embedded(), compression="zstd"))


def test_damaged_headers_of_pages_are_never_more_than_an_error(tmp_path: Path) -> None:
    file = Path(write(tmp_path / "a.parquet", embedded()))
    data = file.read_bytes()
    for at in range(4, 40):
        for value in (0, 0x1C, 0x15, 0xFF):
            file.write_bytes(data[:at] + bytes([value]) + data[at + 1 :])
            try:
                read_source(str(file))
            except DataError:
                continue


def test_bytes_that_were_found_wrong_are_read_anew(tmp_path: Path) -> None:
    file = Path(write(tmp_path / "a.parquet", embedded(), compression="zstd"))
    found, reader = rows(read_source(str(file))), RowBytes(open_store(str(tmp_path)))
    first, second = [(row["key"], row["offset"], row["length"]) for row in found[:2]]
    assert reader.get(*first) == jpeg(0)
    file.unlink()
    assert reader.get(*second) == jpeg(1)  # of the same row group
    write(file, embedded(["other"]), compression="zstd")
    assert reader.get(*first) == jpeg(0)
    assert reader.get(*second) == jpeg(1)
    assert reader.get(*second) == b""  # asked for again at once
