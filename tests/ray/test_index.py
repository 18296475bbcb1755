from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from raycnn.config import Config, load_config
from raycnn.data import examine
from raycnn.data.index import build_index
from raycnn.data.manifest import Index, read_index, summary
from raycnn.errors import DataError, StorageError
from raycnn.storage import open_store
from tests.support.images import BROKEN, GOOD, jpeg

Files = dict[str, bytes]


def write(root: Path, files: Files) -> None:
    for key, data in files.items():
        path = root / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def good(count: int, classes: tuple[str, ...] = ("cat", "dog")) -> Files:
    return {f"{name}/{n:03}.jpg": jpeg(n * 10 + k) for k, name in enumerate(classes) for n in range(count)}


def config(tmp_path: Path, **data: Any) -> Config:
    fields = {"val_fraction": 0.2, "test_fraction": 0.2, "stratify": True, "source": str(tmp_path / "images"), **data}
    run = {"name": "a", "storage": str(tmp_path / "out")}
    return load_config({"run": run, "data": fields, "model": {"name": "reference/lenet"}})


def build(settings: Config) -> tuple[Index, list[tuple[int, int]]]:
    calls: list[tuple[int, int]] = []
    index = build_index(settings, open_store(settings.run.storage), lambda done, total: calls.append((done, total)))
    return index, calls


def refusal(settings: Config) -> DataError:
    with pytest.raises(DataError) as caught:
        build(settings)
    assert not Path(settings.run.storage).exists()
    return caught.value


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Keys read by this process."""
    keys: list[str] = []
    verdict = examine.Examiner._verdict

    def recorded(self: examine.Examiner, row: dict[str, Any], *others: Any) -> dict[str, Any]:
        keys.append(row["key"])
        return verdict(self, row, *others)

    monkeypatch.setattr(examine.Examiner, "_verdict", recorded)
    return keys


@pytest.mark.usefixtures("local_ray")
@pytest.mark.parametrize("through_ray", [False, True])
def test_every_object_ends_as_a_row_or_in_the_quarantine(
    tmp_path: Path, through_ray: bool, reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if through_ray:
        monkeypatch.setattr(examine, "FEW_BYTES", 0)
    odd = {f"cat/{name}": make(900) for name, (make, _, _) in GOOD.items()}
    broken = {f"dog/{name}": make(900) for name, (make, _) in BROKEN.items()}
    files = good(150) | odd | broken | {"README": b"", "cat/.DS_Store": b"x"}
    write(tmp_path / "images", files)
    index, calls = build(config(tmp_path, bad_image_budget=0.1))

    assert bool(reads) is not through_ray
    reasons = dict(zip(*index.quarantine.select(["key", "reason"]).to_pydict().values(), strict=True))
    expected = {f"dog/{name}": reason for name, (_, reason) in BROKEN.items()}
    assert reasons == expected | {"README": "not in a class folder", "cat/.DS_Store": "hidden file"}
    assert {*index.manifest["key"].to_pylist(), *reasons} == set(files)
    assert len(index.manifest) + len(index.quarantine) == len(files)
    assert set(index.quarantine["split"].to_pylist()) <= {"train", "val", "test", None}
    total = len(files) - 2
    assert calls[0] == (0, total)
    assert calls[-1] == (total, total)
    assert len(calls) > 2

    rows = index.manifest.to_pylist()
    order = [(row["split"], row["label"], row["key"]) for row in rows]
    assert order == sorted(order)
    assert all(index.classes[row["label"]] == row["key"].split("/")[0] for row in rows)
    assert all(row["length"] == row["size"] == len(files[row["key"]]) for row in rows)
    turned = next(row for row in rows if row["key"] == "cat/rotated.png")
    assert (turned["width"], turned["height"], turned["format"]) == (48, 36, "PNG")
    assert read_index(open_store(str(tmp_path / "out")), index.hash) == index


def test_a_second_run_reads_only_what_is_new(tmp_path: Path, reads: list[str]) -> None:
    bad = {"dog/bad.jpg": b"no image", "dog/empty.jpg": b""}
    write(tmp_path / "images", good(50) | bad)
    settings = config(tmp_path, bad_image_budget=0.1)
    first, _ = build(settings)
    stored = tmp_path / "out" / "index" / first.hash / "index.json"
    before = stored.stat()
    reads.clear()
    again, calls = build(settings)
    assert again == first
    assert calls[0] == (101, 102)
    assert reads == ["dog/empty.jpg"]  # refused by its size, never fetched
    assert stored.stat().st_mtime_ns == before.st_mtime_ns

    reads.clear()
    new = {"cat/new.jpg": jpeg(5000), "dog/000.jpg": jpeg(5001)}
    write(tmp_path / "images", new)
    (tmp_path / "images" / "dog/001.jpg").unlink()
    changed, _ = build(settings)
    assert set(reads) == {*new, "dog/empty.jpg"}
    assert changed.hash != first.hash
    assert len(changed.manifest) == len(first.manifest)

    reads.clear()
    build(config(tmp_path, bad_image_budget=0.1, split_seed=7))
    assert reads == ["dog/empty.jpg"]


def test_other_limits_and_other_sources_are_read_anew(tmp_path: Path, reads: list[str]) -> None:
    write(tmp_path / "images", good(10))
    shutil.copytree(tmp_path / "images", tmp_path / "copies")  # with the same times, so the same tags
    build(config(tmp_path))
    for changes in ({"max_pixels": 100_000}, {"max_bytes": 100_000}, {"source": str(tmp_path / "copies")}):
        reads.clear()
        build(config(tmp_path, **changes))
        assert len(reads) == 20


def test_equal_content_has_an_equal_hash_wherever_it_lies(tmp_path: Path) -> None:
    for name in ("here", "there"):
        files = good(20)
        write(tmp_path / name, files if name == "here" else dict(reversed(files.items())))
    here, _ = build(config(tmp_path, source=str(tmp_path / "here")))
    there, _ = build(config(tmp_path, source=str(tmp_path / "there")))
    assert here.hash == there.hash
    assert here.source != there.source
    assert read_index(open_store(str(tmp_path / "out")), here.hash).source == there.source


def test_duplicates_share_a_split_and_are_reported(tmp_path: Path) -> None:
    copies = {f"cat/copy-{number}.jpg": jpeg(number * 10) for number in range(12)}  # of cat/000 to cat/011
    write(tmp_path / "images", good(30) | copies | {"dog/copy.jpg": jpeg(0)})
    index, _ = build(config(tmp_path, stratify=False))
    split = dict(zip(*index.manifest.select(["key", "split"]).to_pydict().values(), strict=True))
    assert len(index.duplicates) == 13
    assert all(split[first] == split[second] for first, second in index.duplicates)
    assert index.conflicts == [("cat/000.jpg", "dog/copy.jpg")]
    assert len(set(split.values())) == 3
    assert summary(index)["duplicates"][0] == ["cat/000.jpg", "cat/copy-0.jpg"]


def test_too_many_bad_images_end_it_and_are_named(tmp_path: Path) -> None:
    bad = {f"dog/bad-{number:02}.jpg": b"no image" for number in range(25)}
    write(tmp_path / "images", good(20) | bad | {"README": b""})
    error = refusal(config(tmp_path, bad_image_budget=0.38))
    assert error.code == 3
    assert error.what.startswith("25 of 65 images cannot be used")
    assert "dog/bad-19.jpg: not an image" in error.where
    assert "dog/bad-20.jpg" not in error.where
    assert "bad_image_budget" in error.fix
    assert len(build(config(tmp_path, bad_image_budget=0.39))[0].manifest) == 40


@pytest.mark.parametrize(
    ("files", "changes", "message"),
    [
        (good(10, ("cat",)), {}, "one class only: cat"),
        (good(10) | {"cow/a.jpg": b"no image"}, {"bad_image_budget": 0.1}, "classes without training images: cow"),
        (good(10), {"val_fraction": 0.001}, "no validation images"),
        ({"cat/a.jpg": b"x", "dog/b.jpg": b"y"}, {"bad_image_budget": 0.99}, "2 of 2 images cannot be used"),
        ({"test/cat/a.jpg": jpeg(0), "test/dog/b.jpg": jpeg(1)}, {}, "classes without training images: cat, dog"),
    ],
)
def test_data_that_nothing_can_be_trained_on(
    tmp_path: Path, files: Files, changes: dict[str, Any], message: str
) -> None:
    write(tmp_path / "images", files)
    assert message in str(refusal(config(tmp_path, **changes)))


def test_byte_ranges_and_groups_of_a_manifest(tmp_path: Path) -> None:
    images = [jpeg(number) for number in range(30)]
    lines, offset = ["key,label,group,offset,length"], 0
    for number, data in enumerate(images):
        lines.append(f"shard.bin,{number % 2},patient-{number // 3},{offset},{len(data)}")
        offset += len(data)
    write(tmp_path / "images", {"shard.bin": b"".join(images), "rows.csv": "\n".join(lines).encode()})
    index, _ = build(config(tmp_path, source=str(tmp_path / "images" / "rows.csv")))
    assert len(index.manifest) == 30
    assert index.source == str(tmp_path / "images")
    assert max(Counter(zip(*index.manifest.select(["group", "split"]).to_pydict().values(), strict=True)).values()) == 3
    assert len(set(index.manifest["key_hash"].to_pylist())) == 30


def test_a_failing_store_is_told_and_not_taken_for_bad_images(monkeypatch: pytest.MonkeyPatch) -> None:
    error = StorageError("no answer", where="s3://b/a", fix="wait")

    def fail(*_: Any) -> bytes:
        raise error

    monkeypatch.setattr(examine, "open_rows", lambda _: type("Failing", (), {"get": fail}))
    examiner = examine.Examiner("s3://b", examine.Limits(10, 10), threads=2)
    rows = pa.table(
        {"row": [0, 1], "key": ["a", "b"], "offset": [0, 0], "length": [1, 1], "size": [1, 1], "etag": ["", ""]}
    )
    with pytest.raises(StorageError, match="no answer"):
        list(examiner.examine(rows))
    told = examiner.outcome(rows)
    with pytest.raises(StorageError, match="no answer") as caught:
        examine.checked(told)
    assert caught.value.as_json() == error.as_json()


def test_indexing_a_bucket_in_a_ray_of_its_own(bucket: str, tmp_path: Path) -> None:
    store = open_store(f"s3://{bucket}/images")
    for key, data in (good(40) | {"cat/bad.jpg": BROKEN["truncated.jpg"][0](0)}).items():
        store.put(key, data)
    settings = config(tmp_path, source=store.uri, bad_image_budget=0.05).model_dump(mode="json")
    settings["run"]["storage"] = f"s3://{bucket}/runs"
    code = "import json, raycnn; from raycnn.data import examine; examine.FEW_BYTES = 0\n"
    code += f"print(json.dumps(raycnn.index({settings!r})))"
    done = subprocess.run([sys.executable, "-c", code], env=os.environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)  # nothing else on stdout
    assert told["rows"] == 80
    assert told["splits"] == {"train": 48, "val": 16, "test": 16}
    assert told["quarantined"] == [{"key": "cat/bad.jpg", "reason": "truncated"}]
    hash = told["manifest"].split("/")[-2]
    assert len(read_index(open_store(f"s3://{bucket}/runs"), hash).manifest) == 80
