"""A temporary folder that leaves with its process: real processes, killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from raycnn.scratch import scratch, sweep

OWNER = """
import subprocess, sys, time
from raycnn.scratch import scratch
with scratch() as folder:
    writer = subprocess.Popen(["sleep", "600"], stdout=open(folder + "/log", "w"), start_new_session=True)
    print(folder, writer.pid, flush=True)
    time.sleep(600)
"""


@pytest.fixture(autouse=True)
def own_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))


def gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def sweepers(folder: str) -> list[psutil.Process]:
    return [each for each in psutil.process_iter(["cmdline"]) if folder in (each.info["cmdline"] or [])]


def the_sweeper(folder: str) -> psutil.Process:
    while not (found := sweepers(folder)):  # the kernel shows no command line for a moment after exec
        pass
    (sweeper,) = found
    return sweeper


def test_it_goes_with_all_that_is_in_it(tmp_path: Path) -> None:
    with scratch() as folder:
        assert Path(folder).parent == tmp_path
        (Path(folder) / "a").mkdir()
        (Path(folder) / "a" / "b").write_text("c")
        assert the_sweeper(folder).is_running()
    assert not Path(folder).exists()
    assert sweepers(folder) == []


def test_it_goes_after_a_failure() -> None:
    with pytest.raises(RuntimeError, match="body"), scratch() as folder:
        raise RuntimeError("body")
    assert not Path(folder).exists()


def test_it_goes_though_its_sweeper_was_killed() -> None:
    with scratch() as folder:
        the_sweeper(folder).kill()
    assert not Path(folder).exists()


@pytest.mark.parametrize("whole_group", [False, True])
def test_it_and_who_writes_there_go_after_kill_9(whole_group: bool) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", OWNER], stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as owner:
        assert owner.stdout is not None
        folder, writer = owner.stdout.readline().split()
        sweeper = sweepers(folder)
        assert not gone(int(writer))
        (os.killpg if whole_group else os.kill)(owner.pid, signal.SIGKILL)
    psutil.wait_procs(sweeper, timeout=60)
    assert not Path(folder).exists()
    assert gone(int(writer))


def test_who_only_reads_and_the_owner_itself_are_spared() -> None:
    with scratch() as folder:
        own = (Path(folder) / "own").open("w")
        own.flush()
        with (Path(folder) / "own").open() as read:
            reader = subprocess.Popen(["sleep", "600"], stdin=read)
    own.close()
    assert not Path(folder).exists()
    assert not gone(reader.pid)
    reader.kill()
    reader.wait()


def test_a_writer_is_killed_by_a_sweep(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    with (tmp_path / "x" / "log").open("w") as log, (tmp_path / "xy").open("w") as other:
        writer = subprocess.Popen(["sleep", "600"], stdout=log)
        neighbour = subprocess.Popen(["sleep", "600"], stdout=other)
    sweep(str(tmp_path / "x"))
    assert writer.wait() == -signal.SIGKILL
    assert neighbour.poll() is None
    neighbour.kill()
    neighbour.wait()
