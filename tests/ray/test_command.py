"""The command line on a bucket: kill -9 of the whole job and the same command again, signals, a second writer."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import time

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from raycnn.searching import records
from raycnn.storage import open_store
from raycnn.storage.lease import read_lease
from raycnn.training import checkpoint
from tests.support.runs import final_hashes


@pytest.fixture
def config(bucket, tmp_path):
    """Patches of two photographs, three sizes, JPEG and WebP, named by a Parquet manifest with its own split."""
    store = open_store(f"s3://{bucket}/patches")
    rows = []
    for label, photo in zip(("temple", "flower"), load_sample_images().images, strict=True):
        for number in range(90):
            size = (40, 56, 72)[number % 3]
            top, left = 11 * number % (photo.shape[0] - size), 29 * number % (photo.shape[1] - size)
            buffer = io.BytesIO()
            patch = Image.fromarray(photo[top : top + size, left : left + size])
            patch.save(buffer, "WEBP" if number % 2 else "JPEG")
            key = f"images/{label}-{number}"
            store.put(key, buffer.getvalue())
            split = "test" if number % 5 == 0 else "val" if number % 5 == 1 else "train"
            rows.append({"key": key, "label": label, "split": split})
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    store.put("manifest.parquet", sink.getvalue().to_pybytes())
    path = tmp_path / "patches.yaml"
    text = {
        "run": {"name": "whole", "storage": f"s3://{bucket}/runs"},
        "data": {"source": f"s3://{bucket}/patches/manifest.parquet"},
        "model": {"name": "reference/lenet", "weights": "none"},
        "optim": {"lr": 0.002},
        "train": {"epochs": 50, "global_batch": 24, "workers": 2, "chunk": 8, "checkpoint_every": 6},
    }
    path.write_text(json.dumps(text))
    return path


@pytest.fixture
def start(config):
    """Starts a job; whatever it leaves behind goes at the end."""
    jobs = []
    with tempfile.TemporaryDirectory(prefix="rc-", dir="/tmp") as scratch:  # short: Ray puts sockets below it

        def begin(*flags, verb="train"):
            command = [sys.executable, "-m", "raycnn.cli", verb, str(config), "--json", *flags]
            pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
            jobs.append(
                subprocess.Popen(command, **pipes, start_new_session=True, env=os.environ | {"TMPDIR": scratch})
            )
            return jobs[-1]

        yield begin
        for job in jobs:
            job.kill()
            job.communicate()
        for process in psutil.process_iter(["cmdline"]):
            if scratch in " ".join(process.info["cmdline"] or []):
                process.kill()


def finish(job, code=0):
    out, err = job.communicate(timeout=400)
    assert job.returncode == code, err
    assert out.count("\n") == 1
    return json.loads(out), err


def wait_for_step(store, step, job):
    while not any(commit.step >= step for commit in checkpoint.commits(store, None)):
        assert job.poll() is None, job.communicate()[1]
        time.sleep(0.1)


def test_killed_job_and_the_same_command_again_end_with_the_same_bits(start, bucket):
    whole, err = finish(start())
    assert whole["status"] == "finished"
    assert whole["best"]["metrics"]["accuracy"] > 0.9
    assert "Traceback" not in err
    told = ("index: ", "reference/lenet: ", "step ", "epoch ")
    assert [line for line in err.splitlines() if not line.startswith(told)] == []  # no noise

    store = open_store(f"s3://{bucket}/runs/killed")
    job = start("--run.name", "killed")
    while not read_lease(store).owner:
        time.sleep(0.1)
    second, _ = finish(start("--run.name", "killed"), code=6)
    assert second["error"]["code"] == 6
    wait_for_step(store, 12, job)
    tree = psutil.Process(job.pid).children(recursive=True)
    job.kill()
    _, alive = psutil.wait_procs(tree, timeout=30)
    assert {process.name() for process in alive} <= {"ray::DashboardAgent", "ray::RuntimeEnvAgent"}  # Ray's own, slow
    again, _ = finish(start("--run.name", "killed"))
    assert again["resumed_from"] >= 12
    assert final_hashes(store) == final_hashes(open_store(f"s3://{bucket}/runs/whole"))


def test_sigterm_commits_and_leaves_with_75(start, bucket):
    store = open_store(f"s3://{bucket}/runs/whole")
    job = start("--train.epochs", "500")
    wait_for_step(store, 6, job)
    before = checkpoint.latest(store, None).step
    os.kill(job.pid, signal.SIGTERM)
    result, err = finish(job, code=75)
    assert result["status"] == "preempted"
    assert result["steps"] >= before
    assert checkpoint.latest(store, None).step == result["steps"]
    assert err.splitlines()[-1] == "preempted: everything is committed; the same command continues"


SPACE = ["--search.space", "{optim.lr: {grid: [0.001, 0.002, 0.004, 0.008]}}", "--search.concurrent", "2"]


@pytest.mark.slow
def test_a_search_asked_to_leave_commits_in_the_middle_of_a_segment(start, bucket):
    command = [*SPACE, "--search.confirm", "[0, 0]", "--train.epochs", "200", "--train.eval_every", "200"]
    command += ["--train.checkpoint_every", "100"]
    job = start(*command, verb="search")
    store = open_store(f"s3://{bucket}/runs/whole")
    wait_for_step(store.child("search/trials/0000"), 100, job)
    os.kill(job.pid, signal.SIGTERM)
    _, err = finish(job, code=75)
    assert "the same command continues the search" in err.splitlines()[-1]
    known = records.read_all(store)
    assert [record.status for record in known] == ["running", "running"]
    steps = [checkpoint.latest(store.child(f"search/trials/{record.id}"), None).step for record in known]
    assert all(step % 100 for step in steps), "the step at which it was asked"
    again, _ = finish(start(*command, "--search.budget_s", "1", verb="search"))
    assert [trial["status"] for trial in again["trials"]] == ["stopped", "stopped"]
    assert all("budget" in trial["reason"] for trial in again["trials"]), "that of the first start counts"


@pytest.mark.slow
def test_killed_search_and_the_same_command_again_end_with_the_same_answer(start, bucket):
    command = [*SPACE, "--search.confirm", "[0, 0]", "--train.epochs", "20", "--train.metric", "loss"]
    whole, err = finish(start(*command, verb="search"))
    assert "Traceback" not in err
    assert len(err.splitlines()) < 15, err  # no noise

    store = open_store(f"s3://{bucket}/runs/killed")
    job = start(*command, "--run.name", "killed", verb="search")
    while not (known := records.read_all(store)) or known[-1].id < "0002" or not known[-1].evaluations:
        assert job.poll() is None, job.communicate()[1]
        time.sleep(0.1)
    tree = psutil.Process(job.pid).children(recursive=True)
    job.kill()
    psutil.wait_procs(tree, timeout=30)
    again, _ = finish(start(*command, "--run.name", "killed", verb="search"))

    assert again["best"]["metrics"] == whole["best"]["metrics"]
    undisturbed = open_store(f"s3://{bucket}/runs/whole")
    ended = {record.id for record in known if record.status != "running"}
    assert ended
    for number in range(4):
        trial = f"search/trials/{number:04d}"
        assert final_hashes(store.child(trial)) == final_hashes(undisturbed.child(trial))
        starts = read_lease(store.child(trial)).epoch
        assert starts == (1 if f"{number:04d}" in ended else 2) or not store.folders(trial)
