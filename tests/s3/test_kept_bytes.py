"""train.reuse: bytes, with real requests counted: what a node has fetched once it fetches no more."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from raycnn.demo.server import ObjectServer
from raycnn.storage import open_store
from tests.faults.kit.proxy import Proxy
from tests.support.digits import digit_files
from tests.support.runs import final_hashes

EPOCHS, EACH, BATCH = 3, 10, 16
TRAINER = """
import json, sys
import raycnn
from raycnn.cluster import connect
with connect():
    for line in sys.stdin:
        raycnn.train(raycnn.load_config(json.loads(line), {}))
        print("trained", flush=True)
"""


@contextmanager
def trainer() -> Iterator[Any]:
    """Trains what it is told in a process of its own, whose Ray has the environment of now."""
    command = [sys.executable, "-c", TRAINER]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None

        def train(settings: dict[str, Any]) -> None:
            process.stdin.write(json.dumps(settings) + "\n")
            process.stdin.flush()
            assert any(line == "trained\n" for line in iter(process.stdout.readline, ""))

        try:
            yield train
            process.stdin.close()
        except BaseException:
            process.kill()
            raise


def test_an_image_is_fetched_once_and_the_weights_are_those_without(
    bucket: str, object_server: ObjectServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, runs = open_store(f"s3://{bucket}/images"), open_store(f"s3://{bucket}/runs")
    for key, data in digit_files(EACH):
        images.put(key, data)
    fractions = {"test_fraction": 0.0, "val_fraction": 0.2}
    gets, cached = {}, {}
    with Proxy(object_server.endpoint) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        with trainer() as train:
            for name, reuse in (("without", "none"), ("first", "auto"), ("second", "bytes")):
                before = len(proxy.journal)
                train({
                    "run": {"name": name, "storage": runs.uri},
                    "data": {"source": images.uri, "stratify": True, "block_steps": 1, **fractions},
                    "model": {"name": "reference/lenet", "weights": "none"},
                    "train": {"epochs": EPOCHS, "global_batch": BATCH, "reuse": reuse},
                    "cache": {"folder": str(tmp_path / "node")},
                })  # fmt: skip
                asked = [record.key for record in proxy.journal[before:] if record.method == "GET"]
                gets[name] = Counter(key for key in asked if key.startswith(f"{bucket}/images/"))
                lines = map(json.loads, runs.get(f"{name}/metrics.jsonl").decode().splitlines())
                cached[name] = [line["cached"] for line in lines if "cached" in line]
        hashes = [final_hashes(runs.child(name)) for name in gets]
    every = {f"{bucket}/images/{key}" for key, _ in digit_files(EACH)}
    assert sum(gets["without"].values()) >= (1 + EPOCHS) * len(every)  # for the index, and for each epoch
    assert gets["first"].keys() == every
    assert sum(gets["first"].values()) <= len(every) + 4 * BATCH  # where an epoch ends the next one has begun
    assert sum(gets["second"].values()) == 0
    assert cached["without"] == [0] * EPOCHS
    assert cached["first"][0] < 0.5 < 0.7 < cached["first"][1] <= cached["first"][2] == 1
    assert cached["second"] == [1] * EPOCHS
    assert len({each["weights.safetensors"] for each in hashes}) == 1
    assert len({each["optimizer.pt"] for each in hashes}) == 1
