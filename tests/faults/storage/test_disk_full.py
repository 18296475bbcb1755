"""A disk of 1 MiB, a real one: tmpfs in a mount namespace of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.faults.kit.scenarios import Seen

MOUNT = 'mount -t tmpfs -o size=1m raycnn-faults "$1" && shift && exec "$@"'
UNSHARE = ["unshare", "--mount", *([] if os.geteuid() == 0 else ["--map-root-user"]), "sh", "-c", MOUNT, "sh"]

COMMITS = """
import json, os, sys
from raycnn.errors import StorageError
from raycnn.storage import open_store
from raycnn.training import checkpoint

store, weights = open_store(sys.argv[1] + "/run"), os.urandom(300_000)
def write(step, size):
    files = {"weights.safetensors": weights, "optimizer.pt": os.urandom(size)}
    return checkpoint.write(store, step, 1, files, {}, guard=lambda: None)
first = write(10, 10)
try:
    write(20, 600_000)
except StorageError as error:
    told = error.as_json()
left = [name for _, _, names in os.walk(sys.argv[1]) for name in names if name.startswith(".raycnn")]
newest = checkpoint.latest(store, None)
assert checkpoint.verified(store, newest)
store.delete(["checkpoints/step-00000020.e001/weights.safetensors"])
again = write(30, 10)
print(json.dumps({"told": told, "left": left, "newest": newest.step, "again": checkpoint.latest(store, None).step}))
"""


def on_a_small_disk(folder: Path, code: str) -> Any:
    """The JSON that Python code prints, which is given the folder that the disk is mounted at."""
    if subprocess.run([*UNSHARE, folder, "true"], capture_output=True, check=False).returncode:
        pytest.skip("unshare --mount is not permitted here")
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    command = [*UNSHARE, str(folder), sys.executable, "-c", code, str(folder)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, env=environment).stdout)


@pytest.mark.scenario("disk full")
def test_in_the_middle_of_a_commit(tmp_path: Path, seen: Seen) -> None:
    found = on_a_small_disk(tmp_path, COMMITS)
    assert found["told"]["code"] == 5
    assert found["told"]["what"] == "no space left on the disk"
    path = f"{tmp_path}/run/checkpoints/step-00000020.e001/optimizer.pt"
    assert found["told"]["where"] == f"{path}, 600000 bytes"
    assert found["told"]["fix"]
    assert found["left"] == []
    assert (found["newest"], found["again"]) == (10, 30)
    seen.what = f"code 5: {found['told']['what']} (…/optimizer.pt, 600000 bytes), the last commit intact"
