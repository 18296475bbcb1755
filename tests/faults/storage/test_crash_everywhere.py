"""kill -9 at every request, and at every change of a directory, of all that writes; then the same command again."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from raycnn.errors import StorageError
from raycnn.results import parts, predict
from raycnn.results.inference import Scored
from raycnn.storage import open_store
from raycnn.storage.aws import client
from raycnn.storage.s3 import S3Store
from tests.faults.kit import victim
from tests.faults.kit.operations import OPERATIONS, config_of, infer_here, moments
from tests.faults.kit.proxy import Proxy
from tests.faults.kit.scenarios import Seen
from tests.support.images import encode, pixels

ROWS = {
    "commit": "half-written checkpoint",
    "lease": "two jobs, one name",
    "index": "predict or export interrupted",
    "search": "search driver killed",
    "predict": "predict or export interrupted",
    "large": "predict or export interrupted",
}
QUICK = ("index", "search", "large")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Six images, and a file of 11 MiB beside them."""
    root = tmp_path_factory.mktemp("source")
    for number in range(6):
        path = root / "images" / ("cat", "dog")[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(pixels(number, 32, 32), "PNG"))
    (root / "large.bin").write_bytes(os.urandom(11 * 2**20))
    return str(root / "images")


def marked(name: str) -> object:
    return pytest.param(name, marks=[pytest.mark.scenario(ROWS[name])] + [pytest.mark.slow] * (name not in QUICK))


@pytest.mark.parametrize("name", [marked(name) for name in OPERATIONS])
def test_at_every_request(name: str, proxy: Proxy, store: S3Store, source: str, seen: Seen) -> None:
    operation = OPERATIONS[name]
    uri = f"{store.uri}/0"
    operation.prepare(uri, source)
    count = victim.num_requests(proxy, operation.act, uri, source)
    for number, late in moments(count):
        if not operation.again:
            operation.prepare(uri := f"{store.uri}/{number}-{late}", source)
        victim.kill_at_request(proxy, number, late, operation.act, uri, source)
        operation.holds(uri, source)
        operation.act(uri, source)
        operation.holds(uri, source)
        operation.done(uri, source)
    assert "Uploads" not in client().list_multipart_uploads(Bucket=store.bucket)
    seen.what = f"invariants hold at all {count + 1} moments, nothing left over"


@pytest.mark.parametrize("name", [marked(name) for name in OPERATIONS if name != "large"])
def test_at_every_change_of_a_directory(name: str, tmp_path: Path, source: str, seen: Seen) -> None:
    operation = OPERATIONS[name]
    before = tmp_path / "before"
    operation.prepare(str(before / "run"), source)
    before.mkdir(exist_ok=True)
    shutil.copytree(before, tmp_path / "count")
    count = victim.num_calls(tmp_path / "count", operation.act, str(tmp_path / "count" / "run"), source)
    for number in range(1, count + 1):
        root = tmp_path / str(number)
        shutil.copytree(before, root)
        victim.kill_at_call(root, number, operation.act, str(root / "run"), source)
        operation.holds(str(root / "run"), source)
        operation.act(str(root / "run"), source)
        operation.holds(str(root / "run"), source)
        operation.done(str(root / "run"), source)
        open_store(str(root / "run")).sweep()  # as the next job does when it holds the run
        assert not list(root.rglob(".raycnn-*")), number
        shutil.rmtree(root)
    seen.what = f"invariants hold at all {count} moments, nothing left over"


@pytest.mark.scenario("predict or export interrupted")
def test_predict_goes_on_from_the_rows_it_kept(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seen: Seen
) -> None:
    operation, uri = OPERATIONS["predict"], str(tmp_path / "run")
    operation.prepare(uri, source)
    starts = []

    def noted(*arguments: Any, start: int, tta: str) -> Iterator[Scored]:
        starts.append(start)
        for number, scored in enumerate(infer_here(*arguments, start=start)):
            if len(starts) == 1 and number == 2:
                raise StorageError("down")
            yield scored

    monkeypatch.setattr(parts, "_PART_S", 0.0)
    monkeypatch.setattr(predict, "infer", noted)
    with pytest.raises(StorageError):
        predict.predict(config_of(uri, source))
    operation.holds(uri, source)
    predict.predict(config_of(uri, source))
    operation.done(uri, source)
    assert starts == [0, 4]
    (entry,) = open_store(uri).list("predictions/")
    continued = open_store(uri).get(entry.key)
    predict.predict(config_of(uri, source))
    assert starts == [0, 4, 0]
    assert open_store(uri).get(entry.key) == continued
    seen.what = "went on behind the 4 rows kept; the same bytes as in one go"
