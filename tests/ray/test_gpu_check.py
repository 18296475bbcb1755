"""`make gpu-check`, tiny and on CPUs: that its steps hold together."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_it_goes_through_on_cpus_and_writes_its_page(tmp_path):
    command = [sys.executable, "-m", "tests.gpu", "--cpu", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "report.md").read_text()
    for row in ("main job, first half", "main job, from step", "test accuracy", "search of 4 trials", "sent ahead"):
        assert row in page
