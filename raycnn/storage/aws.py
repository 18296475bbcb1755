"""The S3 client, and what its failures mean.

No message of botocore or of the store is passed on, so none can carry a secret.
"""

from __future__ import annotations

import http.client
import os
import threading
from functools import lru_cache
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

import boto3
import urllib3
from botocore import exceptions as aws
from botocore.config import Config
from botocore.parsers import ResponseParserError

from raycnn.errors import ObjectDamaged, ObjectNotFound, PreconditionFailed, StorageError
from raycnn.storage.retry import worth_retrying

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client

_NO_WHOLE_ANSWER: Final = (
    aws.ConnectionError,
    aws.HTTPClientError,
    aws.IncompleteReadError,
    aws.FlexibleChecksumError,
    aws.ResponseStreamingError,
    aws.CredentialRetrievalError,  # an instance's role is fetched over the network too
    urllib3.exceptions.HTTPError,
    http.client.HTTPException,
    ResponseParserError,
    OSError,
)
_DAMAGE: Final = (aws.IncompleteReadError, aws.FlexibleChecksumError, aws.ResponseStreamingError)
FAILURES: Final = (aws.BotoCoreError, aws.ClientError, *_NO_WHOLE_ANSWER)
"""What a request can raise."""
_NO_CREDENTIALS: Final = (
    aws.NoCredentialsError,
    aws.PartialCredentialsError,
    aws.ProfileNotFound,
    aws.TokenRetrievalError,
    aws.CredentialRetrievalError,
)
_EXPIRED: Final = ("ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired")


def client(silence_s: float = 20.0) -> S3Client:
    """This process's S3 client, made anew when the AWS_* environment changes. Thread-safe.

    Args:
        silence_s: a request ends when the server has sent nothing for so long.
    """
    with _LOCK:
        return _client(os.getpid(), environment(), silence_s)


def environment() -> int:
    """A number that changes when the AWS_* environment does."""
    return hash(tuple(sorted(item for item in os.environ.items() if item[0].startswith("AWS_"))))


_LOCK: Final = threading.Lock()


@lru_cache(maxsize=8)
def _client(_process: int, _environment: int, silence_s: float) -> S3Client:
    custom = any(os.environ.get(name) for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"))
    config = Config(
        connect_timeout=min(5.0, silence_s),
        read_timeout=silence_s,
        max_pool_connections=64,
        retries={"mode": "standard", "total_max_attempts": 1},  # retries are ours
        s3={"addressing_style": "path" if custom else "auto"},
    )
    return boto3.Session().client("s3", config=config)


def answer(error: aws.ClientError) -> tuple[int, str]:
    """HTTP status and error code of an answer."""
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    return status, error.response.get("Error", {}).get("Code", "")


def passing(error: Exception) -> bool:
    """Whether a failed request may succeed when sent again."""
    if isinstance(error, aws.ClientError):
        return worth_retrying(*answer(error))
    return isinstance(error, _NO_WHOLE_ANSWER) and worth_retrying(None)


def failure(error: Exception, where: str) -> StorageError:
    """The typed error for a request that failed for good."""
    if isinstance(error, aws.ClientError):
        return _refusal(*answer(error), where)
    if isinstance(error, _NO_CREDENTIALS):
        fix = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or use an instance role"
        return StorageError("no AWS credentials", where=where, fix=fix)
    kind = type(error).__name__
    if isinstance(error, _DAMAGE):
        what = f"the object comes incomplete or damaged: {kind}"
        return ObjectDamaged(what, where=where, fix="check the network, or restore the object")
    if not isinstance(error, _NO_WHOLE_ANSWER):
        return StorageError(f"the request cannot be sent: {kind}", where=where, fix="check the AWS configuration")
    host = urlsplit(client().meta.endpoint_url).netloc.rpartition("@")[2]
    fix = "check the network and AWS_ENDPOINT_URL, then run the same command again"
    return StorageError(f"no answer from {host}: {kind}", where=where, fix=fix)


def _refusal(status: int, code: str, where: str) -> StorageError:
    if code == "NoSuchBucket":
        return StorageError("the bucket does not exist", where=where, fix="create it or correct its name")
    if status == 404:
        return ObjectNotFound("no such object", where=where, fix="check the key")
    if status in (409, 412):
        fix = "another writer changed it"
        return PreconditionFailed("the object is not in the expected state", where=where, fix=fix)
    if code == "RequestTimeTooSkewed":
        return StorageError("this machine's clock is wrong", where=where, fix="fix the clock (NTP)")
    if code in _EXPIRED:
        return StorageError("the AWS credentials have expired", where=where, fix="renew them")
    if status in (401, 403):
        fix = "check the credentials and the permissions on the bucket"
        return StorageError(f"access denied: {code}", where=where, fix=fix)
    return StorageError(f"the store answered {status} {code}", where=where, fix="run the same command again")
