from __future__ import annotations

import logging

import pytest

from raycnn.errors import StorageError
from raycnn.secrecy import MaskingFormatter, has_credentials, masked

CANARY = "cAnArY/0123456789+secret"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://me:pass@host/a", "https://***@host/a"),
        ("gs://token@bucket/a b@c", "gs://***@bucket/a b@c"),
        ("s3://b/k?X-Amz-Signature=abc&X-Amz-Date=1", "s3://b/k?X-Amz-Signature=***&X-Amz-Date=1"),
        ("x?a=1&X-Amz-Credential=AKI%2F1&sig=z9", "x?a=1&X-Amz-Credential=***&sig=***"),
        ("x?client_secret=s3;r", "x?client_secret=***;r"),
        ("Authorization: Bearer 0123456789abcdef", "Authorization: Bearer ***"),
        ("AWS4-HMAC-SHA256 Credential=AB/x, SignedHeaders=h, Signature=ff", None),
        ("the key AKIAIOSFODNN7EXAMPLE", "the key ***"),
        ("mail me@host, a?b=c&d=e, s3://bucket/key@2x.png", "mail me@host, a?b=c&d=e, s3://bucket/key@2x.png"),
    ],
)
def test_credentials_in_text(text: str, shown: str | None) -> None:
    assert masked(text) == (shown or "AWS4-HMAC-SHA256 Credential=***, SignedHeaders=h, Signature=***")
    assert masked(masked(text)) == masked(text)


@pytest.mark.parametrize("name", ["AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "DB_PASSWORD", "X_API_KEY"])
def test_values_of_secret_variables(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, CANARY)
    assert masked(f"a {CANARY}b") == "a ***b"
    error = StorageError(f"refused {CANARY}", where=CANARY, fix=f"use not {CANARY}")
    assert CANARY not in f"{error} {error!r} {error.args} {error.as_json()}"


def test_what_is_no_secret_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "/home/me/auth_token")
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("MY_TOKEN", "short")
    assert masked("/home/me/auth_token short token") == "/home/me/auth_token short token"


def test_log_lines_and_their_tracebacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", CANARY)
    try:
        raise ValueError(CANARY)
    except ValueError as error:
        record = logging.LogRecord("a", logging.ERROR, "", 0, "no %s", (CANARY,), (ValueError, error, None))
    line = MaskingFormatter().format(record)
    assert CANARY not in line
    assert "no ***" in line
    assert "ValueError: ***" in line


@pytest.mark.parametrize("name", ["X-Amz-Signature", "sig", "secret_key", "AWSAccessKeyId", "client_secret", "key"])
def test_addresses_with_credentials(name: str) -> None:
    assert has_credentials(f"s3://bucket/key?a=1&{name}=x")


def test_addresses_without() -> None:
    assert has_credentials("https://me:pass@host/")
    plain = ["s3://bucket/a:b@c", "gs://b?region=x&endpoint_override=h&monkey=1", "abfs://part@account/a", "/a?key=b"]
    assert not any(map(has_credentials, plain))
    assert masked("abfs://part@account/a") == "abfs://part@account/a"
