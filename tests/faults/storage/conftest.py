from __future__ import annotations

import secrets
from collections.abc import Iterator

import pytest

from raycnn.demo.server import ObjectServer
from raycnn.storage.s3 import S3Store
from tests.faults.kit.proxy import Proxy


@pytest.fixture(scope="package")
def shared_bucket(object_server: ObjectServer) -> str:
    """One bucket for all tests here, since making one takes a second."""
    object_server.make_bucket("faults")
    return "faults"


@pytest.fixture
def proxy(shared_bucket: str, object_server: ObjectServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """A proxy in front of the S3 server; AWS_* of this process lead to it."""
    for name, value in object_server.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    with Proxy(object_server.endpoint) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        yield proxy


@pytest.fixture
def store(proxy: Proxy, shared_bucket: str) -> S3Store:
    """An empty store behind the proxy."""
    return S3Store(shared_bucket, f"{secrets.token_hex(6)}/run", deadline_s=20)
