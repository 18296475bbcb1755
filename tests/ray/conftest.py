"""One private Ray for the session, and a small real data set: the 1,797 digits that scikit-learn ships."""

from __future__ import annotations

from pathlib import Path

import pytest

from raycnn.cluster import connect
from tests.support.digits import write_digits


@pytest.fixture(scope="session")
def local_ray():
    with connect():
        yield


@pytest.fixture(scope="session")
def digits(tmp_path_factory) -> Path:
    """A tree of class folders with 40 PNGs of each digit."""
    return write_digits(tmp_path_factory.mktemp("digits"))
