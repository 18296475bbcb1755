"""A whole job over hostile images: no good image is lost with a bad one, and nothing secret leaves."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from raycnn.storage import open_store
from tests.faults.kit.corpus import CORPUS
from tests.faults.kit.scenarios import Seen
from tests.support.digits import digit_files

CANARY = "cAnArY-0123456789-of-a-database"


def job(config: Path, verb: str, *flags: str, code: int = 0) -> tuple[dict[str, object], str]:
    """What `raycnn VERB --json` prints on stdout, and all that it prints."""
    command = [sys.executable, "-m", "raycnn.cli", verb, str(config), "--json", *flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == code, done.stderr
    (line,) = done.stdout.splitlines()
    return json.loads(line), done.stdout + done.stderr


@pytest.fixture
def config(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Digits, and the corpus among them, in a bucket; a canary in the environment."""
    monkeypatch.setenv("DB_PASSWORD", CANARY)
    images = open_store(f"s3://{bucket}/images")
    for key, data in digit_files():
        images.put(key, data)
    for number, case in enumerate(CORPUS):
        images.put(f"digit-{number % 10}/corpus-{number:03}", case.make())
    path = tmp_path / "run.yaml"
    tree = {
        "run": {"name": "run", "storage": f"s3://{bucket}/runs"},
        "data": {"source": f"s3://{bucket}/images", "bad_image_budget": 0.5},
        "model": {"name": "reference/lenet", "weights": "none"},
        "train": {"epochs": 1, "global_batch": 32, "chunk": 16},
    }
    path.write_text(json.dumps(tree))
    return path


@pytest.mark.slow
@pytest.mark.scenario("odd and broken images")
def test_a_job_over_the_corpus_keeps_every_good_image_and_every_secret(config: Path, bucket: str, seen: Seen) -> None:
    indexed, told = job(config, "index")
    bad = {f"corpus-{number:03}": case.reason for number, case in enumerate(CORPUS) if case.reason}
    quarantined = {each["key"].rpartition("/")[2]: each["reason"] for each in indexed["quarantined"]}
    assert quarantined == bad
    by_split = indexed["quarantined_by"].values()
    assert sum(count for by_class in by_split for count in by_class.values()) == len(bad)
    storage = open_store(f"s3://{bucket}/runs")
    assert indexed["rows"] == 400 + len(CORPUS) - len(bad)

    trained, more = job(config, "train", "--verbose")
    assert trained["status"] == "finished"
    refused, last = job(config, "train", "--data.bad_image_budget", "0.01", "--run.name", "strict", code=3)
    assert refused["error"]["where"].count("/corpus-") == 20

    stored = b"".join(storage.get(entry.key) for entry in storage.list())
    for secret in (CANARY, os.environ["AWS_SECRET_ACCESS_KEY"]):
        assert secret not in told + more + last
        assert secret.encode() not in stored
    seen.what = (
        f"{len(bad)} of {len(CORPUS)} quarantined, {indexed['rows']} rows kept, no secret in {len(stored)} bytes"
    )


def test_an_address_with_a_password_is_refused_without_showing_it(tmp_path: Path) -> None:
    tree = {"run": {"name": "run", "storage": str(tmp_path / "runs")},
            "data": {"source": f"https://me:{CANARY}@host/images"},
            "model": {"name": "reference/lenet"}}  # fmt: skip
    (tmp_path / "run.yaml").write_text(json.dumps(tree))
    refused, told = job(tmp_path / "run.yaml", "index", code=2)
    assert refused["error"]["code"] == 2
    assert CANARY not in told
    assert not (tmp_path / "runs").exists()
