from __future__ import annotations

from pathlib import Path

import pytest

from raycnn.storage.cache import Cache


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    """A node's, with room for 10,000 small rows."""
    return Cache(tmp_path / "node", 10**6)
