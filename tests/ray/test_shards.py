from __future__ import annotations

import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import raycnn
from raycnn.config import ShardsConfig
from raycnn.data.manifest import read_index
from raycnn.data.shards import write_shards
from raycnn.data.sources import read_source
from raycnn.errors import DataError
from raycnn.storage import open_store
from tests.support.images import BROKEN, encode, photo
from tests.support.runs import final_hashes

pytestmark = pytest.mark.usefixtures("local_ray")


def config(source: str, storage: str, name: str = "run", **changes: Any) -> Any:
    settings = {
        "run": {"name": name, "storage": storage},
        "data": {"source": source, "val_fraction": 0.2, "test_fraction": 0.1, "bad_image_budget": 0.1},
        "model": {"name": "reference/lenet", "weights": "none"},
        "train": {"epochs": 1, "global_batch": 32},
    }
    return raycnn.load_config(settings, changes)


def rows(indexed: dict[str, Any]) -> pa.Table:
    storage, _, hash = indexed["manifest"].removesuffix("/manifest.parquet").rpartition("/index/")
    return read_index(open_store(storage), hash).manifest


def test_training_on_shards_is_training_on_their_images_to_the_last_bit(digits: Path, tmp_path: Path) -> None:
    storage = str(tmp_path / "out")
    settings = config(str(digits), storage, "objects", **{"shards.keep_bytes": True, "shards.shard_bytes": 1 << 20})
    indexed = raycnn.index(settings, shard=True)
    shards = indexed["shards"]
    assert shards["rows"] == indexed["rows"]
    assert shards["source"].startswith(f"{storage}/shards/")
    assert shards["skipped"] == []
    raycnn.train(settings)
    raycnn.train(config(shards["source"], storage, "shards"))
    one, other = (final_hashes(open_store(f"{storage}/{name}")) for name in ("objects", "shards"))
    assert one["weights.safetensors"] == other["weights.safetensors"]


@pytest.mark.slow
def test_training_on_parquet_files_is_training_on_their_images_and_they_can_be_sharded(
    digits: Path, tmp_path: Path
) -> None:
    storage, folder = str(tmp_path / "out"), tmp_path / "parquet"
    folder.mkdir()
    files = sorted(digits.glob("*/*.png"))
    for number, options in enumerate(({"compression": "none", "use_dictionary": False}, {"compression": "zstd"})):
        part = files[number::2]
        cells = [{"bytes": path.read_bytes(), "path": path.name} for path in part]
        names = {"key": [str(path.relative_to(digits)) for path in part], "label": [path.parent.name for path in part]}
        table = pa.table({"image": cells, **names})
        pq.write_table(table, folder / f"{number}.parquet", row_group_size=50, **options)
    plain = config(str(digits), storage, "objects")
    embedded = config(str(folder), storage, "embedded", **{"shards.keep_bytes": True})
    raycnn.train(plain)
    raycnn.train(embedded)
    one, other = (final_hashes(open_store(f"{storage}/{name}")) for name in ("objects", "embedded"))
    assert one["weights.safetensors"] == other["weights.safetensors"]
    told = raycnn.index(embedded, shard=True)
    assert told["shards"]["skipped"] == []
    original, packed = rows(told), rows(raycnn.index(config(told["shards"]["source"], storage)))
    for column in ("key_hash", "label", "split", "sha256", "alias"):
        assert packed[column].to_pylist() == original[column].to_pylist()
    assert original["alias"].to_pylist() == rows(raycnn.index(plain))["key"].to_pylist()


@pytest.fixture
def photos(tmp_path: Path) -> str:
    """Twelve large images of classes 1, 2 and 10, and a broken one."""
    folder = tmp_path / "photos"
    lines = ["key,label"]
    for number in range(12):
        path = folder / f"{number}.jpg"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(encode(photo(number, 420, 300), quality=95))
        lines.append(f"{number}.jpg,{(1, 2, 10)[number % 3]}")
    (folder / "bad.jpg").write_bytes(BROKEN["truncated.jpg"][0](0))
    (folder / "list.csv").write_text("\n".join([*lines, "bad.jpg,1"]))
    return str(folder / "list.csv")


def test_shards_are_read_in_place_by_their_manifest_or_by_their_folder(photos: str, tmp_path: Path) -> None:
    folder, storage = str(tmp_path / "shards"), str(tmp_path / "out")
    told = raycnn.index(config(photos, storage, **{"shards.folder": folder, "shards.short_side": 128}), shard=True)
    assert told["shards"]["source"] == f"{folder}/manifest.parquet"
    assert told["shards"]["rows"] == 12
    original = rows(told)
    for source in (f"{folder}/manifest.parquet", folder):
        found = raycnn.index(config(source, storage))
        packed = rows(found)
        assert list(found["classes"]) == list(told["classes"]) == ["1", "2", "10"]
        for column in ("key_hash", "label", "split"):
            assert packed[column].to_pylist() == original[column].to_pylist()
        assert packed["alias"].to_pylist() == original["key"].to_pylist()
        assert set(zip(packed["width"].to_pylist(), packed["height"].to_pylist(), strict=True)) == {(179, 128)}


def test_the_command_writes_shards_to_a_bucket(photos: str, bucket: str, tmp_path: Path) -> None:
    settings = config(photos, f"s3://{bucket}/runs")
    (tmp_path / "config.yaml").write_text(settings.model_dump_json())
    command = [sys.executable, "-m", "raycnn.cli", "index", str(tmp_path / "config.yaml"), "--shard", "--keep-bytes"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"source s3://{bucket}/runs/shards/" in done.stdout
    (folder,) = open_store(f"s3://{bucket}/runs/shards").folders("")
    found = read_source(f"s3://{bucket}/runs/shards/{folder}").rows
    assert sorted(found["alias"].to_pylist()) == sorted(f"{number}.jpg" for number in range(12))
    assert found["length"].to_pylist() == [
        (tmp_path / "photos" / key).stat().st_size for key in found["alias"].to_pylist()
    ]


def test_an_interrupted_start_is_gone_on_with_and_a_finished_one_writes_nothing(photos: str, tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    settings = config(
        photos,
        str(tmp_path / "out"),
        **{"shards.folder": str(folder), "shards.shard_bytes": 1 << 20, "shards.keep_bytes": True},
    )

    def files() -> dict[str, tuple[int, int]]:
        found = {str(path.relative_to(folder)): path.stat() for path in folder.rglob("*.*")}
        return {name: (stat.st_ino, stat.st_mtime_ns) for name, stat in found.items()}

    first = raycnn.index(settings, shard=True)
    before, bytes_before = files(), (folder / "manifest.parquet").read_bytes()
    tars = sorted(name for name in before if name.endswith(".tar"))
    assert len(tars) > 1
    for name in (tars[0], f"parts/{tars[0].replace('.tar', '.parquet')}", "manifest.parquet"):
        (folder / name).unlink()
    again = raycnn.index(settings, shard=True)
    assert again == first
    after = files()
    rewritten = {name for name in before if before[name] != after[name]}
    assert rewritten == {tars[0], f"parts/{tars[0].replace('.tar', '.parquet')}", "manifest.parquet"}
    assert (folder / "manifest.parquet").read_bytes() == bytes_before


def test_a_folder_of_other_shards_is_refused(photos: str, tmp_path: Path) -> None:
    folder = {"shards.folder": str(tmp_path / "shards")}
    raycnn.index(config(photos, str(tmp_path / "out"), **folder), shard=True)
    with pytest.raises(DataError, match="shards of other images or settings lie there"):
        raycnn.index(config(photos, str(tmp_path / "out"), **folder, **{"shards.quality": 80}), shard=True)


def test_an_image_that_is_gone_since_it_was_indexed_is_skipped_and_named(photos: str, tmp_path: Path) -> None:
    settings = config(photos, str(tmp_path / "out"))
    indexed = raycnn.index(settings)
    hash = indexed["manifest"].split("/")[-2]
    (tmp_path / "photos" / "3.jpg").unlink()
    storage = open_store(str(tmp_path / "out"))
    told = write_shards(read_index(storage, hash), storage, ShardsConfig(), lambda done, total: None)
    assert told["skipped"] == [{"key": "3.jpg", "reason": "missing"}]
    assert told["rows"] == 11


def test_every_sample_has_its_class_beside_it(photos: str, tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    raycnn.index(config(photos, str(tmp_path / "out"), **{"shards.folder": str(folder)}), shard=True)
    seen = {}
    for path in folder.glob("*.tar"):
        with tarfile.open(path) as tar:
            members = {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
        for name in {name.partition(".")[0] for name in members}:
            told = json.loads(members[f"{name}.json"])
            assert name not in seen
            assert {told["split"]} == {path.name.partition("-")[0]}
            seen[name] = (told["alias"], told["label"], int(members[f"{name}.cls"]))
            assert io.BytesIO(members[f"{name}.jpg"]).read(2) == b"\xff\xd8"
    assert sorted(seen.values()) == sorted((f"{n}.jpg", (1, 2, 10)[n % 3], n % 3) for n in range(12))
