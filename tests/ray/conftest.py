"""One private Ray for the session, and a small real data set: the 1,797 digits that scikit-learn ships."""

from __future__ import annotations

from pathlib import Path

import pytest

from raycnn.cluster import connect
from tests.support.digits import write_digits
from tests.support.walking import Runs


@pytest.fixture(scope="session")
def local_ray():
    with connect():
        yield


@pytest.fixture(scope="session")
def digits(tmp_path_factory) -> Path:
    """A tree of class folders with 40 PNGs of each digit."""
    return write_digits(tmp_path_factory.mktemp("digits"))


@pytest.fixture
def run(local_ray, tmp_path, monkeypatch) -> Runs:
    """Tune over trials that walk, silent."""
    monkeypatch.setenv("RAY_AIR_NEW_OUTPUT", "0")
    monkeypatch.setenv("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    monkeypatch.setenv("TUNE_DISABLE_STRICT_METRIC_CHECKING", "1")
    monkeypatch.setenv("TUNE_PRINT_ALL_TRIAL_ERRORS", "0")
    monkeypatch.setenv("TUNE_GLOBAL_CHECKPOINT_S", "1e9")
    return Runs(tmp_path)
