from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raycnn.data import sources, tables
from raycnn.data.listing import is_safe, list_objects
from raycnn.data.sources import Source, list_images, read_source
from raycnn.errors import DataError
from raycnn.storage import Entry
from raycnn.storage.local import LocalStore


@pytest.fixture
def tree(tmp_path: Path) -> Any:
    def write(*keys: str) -> str:
        for key in keys:
            path = tmp_path / "images" / key
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(key.encode())
        return str(tmp_path / "images")

    return write


def column(source: Source, name: str) -> dict[str, Any]:
    return dict(zip(source.rows["key"].to_pylist(), source.rows[name].to_pylist(), strict=True))


def test_class_folders(tree: Any) -> None:
    root = tree("dog/a.jpg", "cat/deep/b.jpg", "README", "cat/.DS_Store", ".git/x/config", "cat/Thumbs.db")
    source = read_source(root)
    assert (source.kind, source.classes, source.root) == ("class", ("cat", "dog"), root)
    assert column(source, "label") | {"dog/a.jpg": 1, "cat/deep/b.jpg": 0} == column(source, "label")
    assert column(source, "labels")["dog/a.jpg"] == [1]
    assert column(source, "reason") == {
        ".git/x/config": "hidden file",
        "README": "not in a class folder",
        "cat/.DS_Store": "hidden file",
        "cat/Thumbs.db": "hidden file",
        "cat/deep/b.jpg": None,
        "dog/a.jpg": None,
    }
    assert set(column(source, "split").values()) == {None}
    assert column(source, "length")["dog/a.jpg"] == column(source, "size")["dog/a.jpg"] == len("dog/a.jpg")


def test_split_folders_with_other_names(tree: Any) -> None:
    source = read_source(tree("Training/cat/a", "Training/dog/b", "validation/cat/c", "testing/dog/d", "testing/e"))
    assert source.classes == ("cat", "dog")
    splits = {"Training/cat/a": "train", "Training/dog/b": "train", "validation/cat/c": "val", "testing/dog/d": "test"}
    assert column(source, "split") | splits == column(source, "split")
    assert column(source, "reason")["testing/e"] == "not in a class folder"


def test_a_class_may_be_called_train_but_splits_beside_classes_are_refused(tree: Any) -> None:
    assert read_source(tree("train/a", "plane/b")).classes == ("plane", "train")
    with pytest.raises(DataError, match="folders of splits beside others"):
        read_source(tree("train/cat/a", "val/cat/b"))


def test_nothing_there(tree: Any, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no objects"):
        read_source(str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match="no class folders"):
        read_source(tree("a.jpg"))


def test_a_file_name_that_is_no_text_is_refused(tree: Any) -> None:
    root = tree("cat/a", "dog/b")
    Path(os.fsdecode(os.fsencode(root) + b"/cat/\xff.jpg")).write_bytes(b"x")
    assert "unsafe key" in column(read_source(root), "reason").values()


@pytest.mark.parametrize(
    "key", ["", "/a", "../a", "a/../b", "a//b", "./a", "a\0b", "a\\b", "s3://other/a", "a/" + "b" * 1024]
)
def test_unsafe_keys(key: str) -> None:
    assert not is_safe(key)
    assert is_safe("a/b c.jpg")
    assert is_safe("ä" * 512)


def manifest(root: str, text: str, name: str = "rows.csv") -> str:
    path = Path(root) / name
    path.write_text(text)
    return str(path)


def test_a_csv_manifest(tree: Any) -> None:
    root = tree("a", "b", "c", "d", "unlisted")
    text = "key,label,split,group\na,dog,Training,x\nb,cat,,\nc,,val,x\nmissing,dog,,\n"
    source = read_source(manifest(root, text + "../etc/passwd,cat,,\na,cat,,\nd,NA,,\n"))
    assert (source.kind, source.classes, source.root) == ("class", ("NA", "cat", "dog"), root)
    assert source.rows["reason"].to_pylist() == [None, None, "no label", "missing", "unsafe key", "listed twice", None]
    assert source.rows["label"].to_pylist()[:2] == [2, 1]
    assert source.rows["split"].to_pylist()[:3] == ["train", None, "val"]
    assert source.rows["group"].to_pylist()[:3] == ["x", None, "x"]
    assert source.rows["size"].to_pylist()[:2] == [1, 1]


def test_byte_ranges(tree: Any) -> None:
    root = tree("shard")
    source = read_source(
        manifest(root, "key,label,offset,length\nshard,a,0,2\nshard,b,2,3\nshard,b,2,3\nshard,a,4,2\n")
    )
    assert source.rows["reason"].to_pylist() == [None, None, "listed twice", "outside its object"]
    assert source.rows["length"].to_pylist()[:2] == [2, 3]


def read_label(root: str, values: list[Any], type_: pa.DataType | None = None) -> Source:
    keys = ["a", "b", "c", "d"][: len(values)]
    path = Path(root) / "rows.parquet"
    pq.write_table(pa.table({"key": keys, "label": pa.array(values, type_)}), path)
    return read_source(str(path))


def test_the_type_of_the_label_column_says_what_a_target_is(tree: Any) -> None:
    root = tree("a", "b", "c", "d")
    source = read_label(root, [10, 9, None])
    assert (source.kind, source.classes) == ("class", ("9", "10"))
    assert source.rows["label"].to_pylist() == [1, 0, -1]
    assert source.rows["labels"].to_pylist() == [[1], [0], []]
    assert read_label(root, ["x", "y"], pa.dictionary(pa.int8(), pa.string())).classes == ("x", "y")
    assert read_label(root, [True, False]).classes == ("false", "true")
    source = read_label(root, [["x", "y", "x"], [], None, ["a"]])
    assert (source.kind, source.classes) == ("classes", ("a", "x", "y"))
    assert source.rows["labels"].to_pylist() == [[1, 2], [], [], [0]]
    assert source.rows["reason"].to_pylist() == [None, None, "no label", None]
    source = read_label(root, [1.5, float("nan"), None])
    assert (source.kind, source.classes) == ("number", ())
    assert source.rows["value"].to_pylist()[0] == 1.5
    assert source.rows["reason"].to_pylist() == [None, "no label", "no label"]


def test_lists_and_numbers_in_a_csv(tree: Any) -> None:
    root = tree("a", "b", "c")
    source = read_source(manifest(root, "key,label\na,x; y\nb,y\nc,\n"))
    assert (source.kind, source.classes) == ("classes", ("x", "y"))
    assert source.rows["labels"].to_pylist() == [[0, 1], [1], []]
    assert read_source(manifest(root, "key,label\na,0.5\nb,2\n")).kind == "number"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("key,target\na,b\n", "no column label"),
        ("key,label\n", "no rows"),
        ("key,label\na,b,c\n", "not a readable CSV file"),
        ("key,label,split\na,b,holdout\n", "unknown split 'holdout'"),
        ("key,label,offset\na,b,x\n", "not a readable CSV file"),
    ],
)
def test_unusable_manifests(tree: Any, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_source(manifest(tree("a"), text))


def test_a_manifest_that_is_not_there_or_no_parquet(tree: Any) -> None:
    root = tree("a")
    with pytest.raises(DataError, match="no such manifest"):
        read_source(f"{root}/rows.csv")
    with pytest.raises(DataError, match="not a readable PARQUET file"):
        read_source(manifest(root, "key,label\na,b\n", "rows.parquet"))


def test_full_uris_of_the_same_bucket(tree: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = Path(tree("sets/a", "sets/b", "elsewhere/c"))

    def opened(uri: str) -> LocalStore:
        return LocalStore(root / uri.removeprefix("s3://bucket").strip("/"))

    for module in (sources, tables):
        monkeypatch.setattr(module, "open_images", opened)
    manifest(str(root / "sets"), "key,label\ns3://bucket/sets/a,x\nb,y\n")
    source = read_source("s3://bucket/sets/rows.csv")
    assert source.root == str(root / "sets")
    assert source.rows["key"].to_pylist() == ["a", "b"]
    manifest(str(root / "sets"), "key,label\ns3://bucket/elsewhere/c,x\nb,y\ns3://other/d,x\n")
    source = read_source("s3://bucket/sets/rows.csv")
    assert source.root == str(root)
    assert source.rows["key"].to_pylist() == ["elsewhere/c", "sets/b", "s3://other/d"]
    assert source.rows["reason"].to_pylist() == [None, None, "unsafe key"]


def test_images_without_targets(tree: Any) -> None:
    root = tree("a.jpg", "deep/b.jpg", ".DS_Store")
    where, table = list_images(root)
    assert where == root
    assert table["key"].to_pylist() == ["a.jpg", "deep/b.jpg"]
    assert table["length"].to_pylist() == [5, 10]
    assert table["sha256"].to_pylist() == [None, None]
    assert table["key_hash"].type == pa.uint64()
    _, table = list_images(manifest(root, "key\na.jpg\ngone.jpg\n../x\n"))
    assert table["key"].to_pylist() == ["a.jpg", "gone.jpg"]


def test_a_long_listing_is_taken_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    def entries() -> Iterator[Entry]:
        for number in range(20_000):
            yield Entry(f"{number:06}", number, "tag")

    table = list_objects(entries())
    assert len(table) == 20_000
    assert table["key"].num_chunks > 1
    wanted = pa.array(["000007", "019999", "x"])
    assert list_objects(entries(), wanted)["size"].to_pylist() == [7, 19_999]
