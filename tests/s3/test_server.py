"""The object server of the demo and the tests."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import boto3
import psutil
import pytest

from raycnn.demo import server
from raycnn.demo.server import ObjectServer
from raycnn.errors import StorageError
from tests.support.waiting import wait_for

OWNER = """
import sys, time
from pathlib import Path
from raycnn.demo.server import ObjectServer
with ObjectServer(*map(Path, sys.argv[1:])) as server:
    print(*server._sockets, flush=True)
    time.sleep(600)
"""


def test_a_server_keeps_its_objects_over_a_restart(tmp_path: Path) -> None:
    for number in range(2):
        with ObjectServer(tmp_path / "data") as server:
            server.make_bucket("kept")
            keys = {
                "aws_access_key_id": server.environment["AWS_ACCESS_KEY_ID"],
                "aws_secret_access_key": server.environment["AWS_SECRET_ACCESS_KEY"],
            }
            s3 = boto3.client("s3", endpoint_url=server.endpoint, region_name="us-east-1", **keys)
            if number == 0:
                s3.put_object(Bucket="kept", Key="a", Body=b"x" * 10**6)
            assert s3.get_object(Bucket="kept", Key="a")["Body"].read() == b"x" * 10**6
            s3.close()


@pytest.mark.parametrize("kept", [False, True])
def test_it_goes_with_a_killed_process(kept: bool, tmp_path: Path) -> None:
    (tmp_path / "tmp").mkdir()
    command = [sys.executable, "-c", OWNER, *([str(tmp_path / "objects")] if kept else [])]
    environment = {**os.environ, "TMPDIR": str(tmp_path / "tmp")}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as owner:
        assert owner.stdout is not None
        sockets = owner.stdout.readline().decode().split()
        started = psutil.Process(owner.pid).children(recursive=True)
        assert any("weed" in process.name() for process in started)
        owner.send_signal(signal.SIGKILL)
    wait_for(lambda: not any(process.is_running() for process in started), "the end of what it started")
    assert not list((tmp_path / "tmp").iterdir())
    assert (tmp_path / "objects").exists() == kept
    for socket in sockets:  # which it will have in /tmp
        Path(socket).unlink(missing_ok=True)


def test_what_a_server_that_does_not_start_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "weed"
    broken.write_text("#!/bin/sh\necho first\necho no space left on device\nexit 1\n")
    broken.chmod(broken.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(server, "_binary", lambda: broken)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(StorageError, match="does not start: no space left on device"):
        ObjectServer().__enter__()
    assert list(tmp_path.iterdir()) == [broken]
