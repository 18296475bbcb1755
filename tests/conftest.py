"""Fixtures for tests that need a real object store."""

from __future__ import annotations

import secrets
from collections.abc import Iterator

import pytest
from hypothesis import settings

from raycnn.demo.server import ObjectServer

settings.register_profile("untimed", deadline=None)  # no test depends on the clock of a noisy machine
settings.load_profile("untimed")


@pytest.fixture(scope="session")
def object_server() -> Iterator[ObjectServer]:
    """One SeaweedFS for the whole session."""
    with ObjectServer() as server:
        yield server


@pytest.fixture
def bucket(object_server: ObjectServer, monkeypatch: pytest.MonkeyPatch) -> str:
    """A new bucket's name; AWS_* of this process lead to its server."""
    for name, value in object_server.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    name = f"test-{secrets.token_hex(6)}"
    object_server.make_bucket(name)
    return name
