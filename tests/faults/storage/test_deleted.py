"""A run whose checkpoints are gone never starts again by itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from raycnn.data.index import build_index
from raycnn.errors import CheckpointError
from raycnn.storage import open_store
from raycnn.storage.lease import begin_group
from raycnn.training import checkpoint, fit
from raycnn.training.run import create_run, hold
from raycnn.training.setup import facts_of
from raycnn.training.start import first_commit
from tests.faults.kit.operations import config_of
from tests.faults.kit.scenarios import Seen
from tests.support.images import encode, pixels


@pytest.mark.scenario("checkpoints deleted")
@pytest.mark.parametrize("lost", [("checkpoints/",), ("lease.json",), ("checkpoints/", "lease.json")], ids="+".join)
def test_all_of_them(lost: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seen: Seen) -> None:
    for number in range(6):
        path = tmp_path / "images" / ("cat", "dog")[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(pixels(number, 32, 32), "PNG"))
    config = config_of(str(tmp_path / "storage" / "run"), str(tmp_path / "images"))
    storage = open_store(config.run.storage)
    store = storage.child("run")
    index = build_index(config, storage, lambda done, total: None)
    with hold(store) as lease:
        create_run(config, store, index.hash, index.classes)
        record = begin_group(store, lease.owner, lambda held: -1)
        first_commit(config, store, record, facts_of(config, index.classes), lambda line: None)
        begin_group(store, lease.owner, lambda held: checkpoint.newest_step(store, held))
    if len(lost) > 1:  # nothing else is left that tells
        store.put("metrics.jsonl", b'{"step": 1, "samples": 2}\n')
    store.delete([entry.key for part in lost for entry in list(store.list(part))])

    monkeypatch.setattr(fit, "run_groups", lambda *_: pytest.fail("it trains"))
    for _ in range(2):  # nor the second time
        with pytest.raises(CheckpointError, match="gone") as caught, hold(store) as lease:
            fit.fit(config, store, index, lease, lambda progress, lines: None)
        assert caught.value.code == 7
    seen.what = f"code 7: {caught.value.what}: {caught.value.fix}"
