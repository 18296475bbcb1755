"""jobs/*.py through `ray job submit` on a cluster with token authentication, against a real object store."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from raycnn.storage import open_store
from raycnn.training import checkpoint
from tests.support.ray_head import ray_head
from tests.support.runs import final_hashes, metrics
from tests.support.waiting import wait_for

ROOT = Path(__file__).parents[2]
CONFIG = {
    "data": {"val_fraction": 0.15, "test_fraction": 0.15, "stratify": True},
    "model": {"name": "reference/lenet", "weights": "none"},
    "train": {"epochs": 30, "global_batch": 32, "workers": 2, "chunk": 16, "checkpoint_every": 5},
}


@pytest.fixture
def head(bucket):
    with ray_head() as running:  # its workers inherit the bucket's AWS_* from its environment
        yield running


def ray_job(head, *arguments):
    command = [str(Path(sys.executable).with_name("ray")), "job", *arguments]
    environment = head.environment | {"RAY_ADDRESS": head.dashboard_url}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def submit(head, name, config, *more, verb="train"):
    """Submit jobs/VERB.py with the project as the working directory, as the README says; followed unless told."""
    code = head.temp_dir / "code"
    if not code.exists():
        for part in ("raycnn", "jobs"):
            shutil.copytree(ROOT / part, code / part, ignore=shutil.ignore_patterns("__pycache__"))
    (code / "run.yaml").write_text(json.dumps(config))
    environment = json.dumps({"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "60"}})
    options = ["--submission-id", name, "--working-dir", str(code), "--runtime-env-json", environment, *more]
    return ray_job(head, "submit", *options, "--", sys.executable, f"jobs/{verb}.py", "run.yaml", "--json")


def config_of(bucket, digits, **sections):
    """CONFIG on the digits, which are put into the bucket."""
    source = open_store(f"s3://{bucket}/digits")
    for path in digits.rglob("*.png"):
        source.put(str(path.relative_to(digits)), path.read_bytes())
    run = {"name": "job", "storage": f"s3://{bucket}/runs"}
    return {**CONFIG, "run": run, "data": {**CONFIG["data"], "source": f"s3://{bucket}/digits"}, **sections}


def test_submit_stop_and_resubmit(head, bucket, digits):
    config = config_of(bucket, digits)
    store = open_store(f"s3://{bucket}/runs/job")

    submit(head, "first", config, "--no-wait")
    wait_for(lambda: any(commit.step >= 5 for commit in checkpoint.commits(store, None)), "step 5")
    ray_job(head, "stop", "first")
    assert "was stopped" in ray_job(head, "status", "first")
    logs = ray_job(head, "logs", "first")
    assert '"status": "preempted"' in logs, logs
    stopped = checkpoint.latest(store, None)
    total = 30 * 280 // 32 + 1
    assert 5 <= stopped.step < total

    output = submit(head, "second", config)
    result = json.loads(next(line for line in output.splitlines() if line.startswith('{"run"')))
    assert result["status"] == "finished"
    assert result["resumed_from"] == stopped.step
    assert result["steps"] == total
    newest = checkpoint.latest(store, None)
    assert newest.step == total
    checkpoint.verified(store, newest)
    steps = [line["step"] for line in metrics(store) if "loss" in line]
    assert steps == sorted(set(steps))  # nothing lost, nothing twice
    assert final_hashes(store)["step"] == total
    assert os.environ["AWS_SECRET_ACCESS_KEY"] not in logs + output


@pytest.mark.slow
def test_a_search_as_a_job(head, bucket, digits):
    search = {"space": {"optim.lr": {"grid": [1e-3, 1e-2]}}, "confirm": [0, 0]}
    train = {**CONFIG["train"], "epochs": 2, "workers": 1}
    output = submit(head, "search", config_of(bucket, digits, search=search, train=train), verb="search")
    result = json.loads(next(line for line in output.splitlines() if line.startswith('{"run"')))
    assert [trial["status"] for trial in result["trials"]] == ["finished", "finished"]
    newest = checkpoint.latest(open_store(f"s3://{bucket}/runs/job"), None)
    assert result["best"]["checkpoint"].endswith(newest.name)
    assert result["test"]["metrics"]["accuracy"] is not None
