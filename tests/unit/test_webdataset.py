from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from raycnn.data.sources import Source, read_source
from raycnn.errors import DataError
from tests.support.images import jpeg

Members = Sequence[tuple[str, bytes]]


def tar(*members: tuple[str, bytes], format_: int = tarfile.USTAR_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format_) as archive:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def sample(name: str, seed: int = 0, **told: Any) -> Members:
    described = [(f"{name}.json", json.dumps(told).encode())] if told else []
    return [(f"{name}.jpg", jpeg(seed)), *described]


def source(root: Path, **shards: bytes) -> Source:
    for name, data in shards.items():
        root.mkdir(exist_ok=True)
        (root / f"{name.replace('_', '-')}.tar").write_bytes(data)
    return read_source(str(root))


def rows(found: Source) -> list[dict[str, Any]]:
    return found.rows.to_pylist()


@pytest.mark.parametrize("format_", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_row_is_where_its_image_lies_in_the_shard(tmp_path: Path, format_: int) -> None:
    long = "a" * 180  # behind a header of its own in two of the formats
    names = ["0", "1", "folder/2"] if format_ == tarfile.USTAR_FORMAT else ["0", long, f"folder/{long}"]
    members = [each for n, name in enumerate(names) for each in sample(name, n, label="cat", x="é" * n)]
    found = source(tmp_path / "s", x_0=tar(*members, format_=format_))
    data = (tmp_path / "s" / "x-0.tar").read_bytes()
    assert [row["alias"] for row in rows(found)] == [f"x-0.tar/{name}" for name in names]
    for n, row in enumerate(rows(found)):
        assert data[row["offset"] :][: row["length"]] == jpeg(n)
        assert (row["key"], row["size"], row["reason"]) == ("x-0.tar", len(data), None)


def test_classes_by_json_by_number_or_by_folder(tmp_path: Path) -> None:
    by_name = source(tmp_path / "a", x=tar(*sample("0", label="dog"), *sample("1", label="cat")))
    assert (by_name.kind, by_name.classes) == ("class", ("cat", "dog"))
    numbered = [each for n in (0, 2, 10) for each in (*sample(str(n), n), (f"{n}.cls", str(n).encode()))]
    assert source(tmp_path / "b", x=tar(*numbered)).classes == ("0", "2", "10")
    folders = source(tmp_path / "c", x=tar(*sample("dog/a.b"), *sample("cat/a"), *sample("dog/c", 3, width=9)))
    assert [row["name"] for row in rows(folders)] == ["dog", "cat", "dog"]
    several = source(tmp_path / "d", x=tar(*sample("0", label=["b", "a"]), *sample("1", label=[])))
    assert (several.kind, several.classes) == ("classes", ("a", "b"))
    assert source(tmp_path / "e", x=tar(*sample("0", label=0.5), *sample("1", label=2.5))).kind == "number"


def test_what_the_json_says_goes_before_the_number(tmp_path: Path) -> None:
    shard = tar(
        *sample("0", label="cat", alias="cat/a.jpg"), ("0.cls", b"7"), ("1.cls", b"3"), *sample("1", label="dog")
    )
    found = source(tmp_path / "s", x=shard)
    assert found.classes == ("cat", "dog")
    assert [row["alias"] for row in rows(found)] == ["cat/a.jpg", "x.tar/1"]


def test_a_sample_without_a_class_is_told_and_one_without_an_image_is_none(tmp_path: Path) -> None:
    members = [*sample("0", label="cat"), *sample("1"), ("2.json", b'{"label": "cat"}'), ("3.txt", b"x"), *sample("4")]
    found = source(tmp_path / "s", x=tar(*members, ("4.json", b"{no")))
    assert [(row["alias"], row["reason"]) for row in rows(found)] == [
        ("x.tar/0", None),
        ("x.tar/1", "no label"),
        ("x.tar/4", "no label"),
    ]


def test_splits_by_the_names_of_shards(tmp_path: Path) -> None:
    def shard(number: int) -> bytes:
        return tar(*sample("0", number, label="cat"))

    named = source(tmp_path / "a", train_0=shard(0), train_1=shard(1), valid_0=shard(2), test=shard(3))
    assert [row["split"] for row in rows(named)] == ["test", "train", "train", "val"]
    some = source(tmp_path / "b", train_0=shard(0), other_0=shard(1))
    assert [row["split"] for row in rows(some)] == [None, None]


def test_what_describes_shards_may_lie_beside_them_and_an_image_may_not(tmp_path: Path) -> None:
    shard = tar(*sample("0", label="cat"))
    source(tmp_path / "s", x=shard)
    (tmp_path / "s" / "_shards.json").write_text("{}")
    assert len(rows(source(tmp_path / "s"))) == 1
    (tmp_path / "s" / "cat").mkdir()
    (tmp_path / "s" / "cat" / "a.jpg").write_bytes(jpeg())
    by_key = {row["key"]: row["reason"] for row in rows(source(tmp_path / "s"))}
    assert by_key == {"cat/a.jpg": None, "x.tar": "not in a class folder", "_shards.json": "not in a class folder"}


def test_damaged_shards_are_refused_by_name(tmp_path: Path) -> None:
    whole = tar(*sample("0", label="cat"), *sample("1", 1, label="dog"))
    second = whole.index(b"1.jpg")
    broken = {
        "no tar": b"<html>" + bytes(2000),
        "empty": b"",
        "a bad header": whole[:second] + b"?" * 512 + whole[second + 512 :],
        "cut off": whole[: second + 700],
    }
    for number, (what, data) in enumerate(broken.items()):
        with pytest.raises(DataError, match="tar file") as caught:
            source(tmp_path / str(number), x=data)
        assert caught.value.where.endswith("/x.tar"), what


def test_shards_without_images_and_labels_of_several_kinds_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no images in the shards"):
        source(tmp_path / "a", x=tar(("0.json", b"{}")))
    with pytest.raises(DataError, match="labels of several kinds"):
        source(tmp_path / "b", x=tar(*sample("0", label=["a"]), *sample("1", label="a")))
