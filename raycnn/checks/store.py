"""What the object store does: reads, writes on conditions, keeps time."""

from __future__ import annotations

import http.client
import os
import time
import uuid
from email.utils import parsedate_to_datetime
from pathlib import Path

from raycnn.checks.check import Check
from raycnn.checks.machine import disk_space
from raycnn.config import Config
from raycnn.dashboard import ask
from raycnn.errors import PreconditionFailed, RaycnnError
from raycnn.storage import Store, open_images, open_store


def object_store(store: Store) -> Check:
    """Whether the store reads, writes, deletes, and keeps to the conditions of a conditional write."""
    key = f"doctor-{uuid.uuid4().hex}"
    try:
        etag = store.put(key, b"1", create_only=True)
        try:
            fault = _conditions(store, key, etag)
        finally:
            store.delete([key])
    except RaycnnError as error:
        return Check("object store", False, f"{store.uri}: {error.what}", error.fix)
    if fault:
        return Check("object store", False, f"{store.uri} {fault}", "use a store with conditional writes")
    return Check("object store", True, f"{store.uri} reads, writes conditionally and deletes")


def source(uri: str) -> Check:
    """Whether the images, or the manifest that names them, can be read."""
    try:
        if uri.endswith((".csv", ".parquet")):
            folder, _, name = uri.rpartition("/")
            open_images(folder or ".").stat(name)
        elif next(iter(open_images(uri).list()), None) is None:
            return Check("images", False, f"{uri} holds nothing", "check data.source")
    except RaycnnError as error:
        return Check("images", False, f"{uri}: {error.what}", error.fix)
    return Check("images", True, f"{uri} can be read")


def clock(endpoint: str) -> Check:
    """Whether this machine's clock agrees with the store's (S3 refuses requests 15 minutes off)."""
    try:
        _, date = ask(endpoint, "HEAD")
    except (OSError, http.client.HTTPException) as error:
        return Check("clock", None, f"{endpoint} could not be asked: {error}", "check the network and AWS_ENDPOINT_URL")
    if date is None:
        return Check("clock", None, f"{endpoint} tells no date", "compare the clock with another one")
    return judge_clock(date, time.time())


def judge_clock(date: str, now_s: float) -> Check:
    """The finding for the store's `Date` header and this machine's Unix time: 5 minutes apart is a fault."""
    apart_s = now_s - parsedate_to_datetime(date).timestamp()
    wrong = abs(apart_s) > 300
    detail = f"{abs(apart_s):.0f} s {'ahead of' if apart_s > 0 else 'behind'} the store's"
    return Check("clock", not wrong, detail, "set the clock (NTP)" if wrong else "")


def storage_checks(config: Config) -> list[Check]:
    """Every check of where the run reads and writes."""
    uri = config.run.storage
    try:
        found = [object_store(open_store(uri)), source(config.data.source)]
    except RaycnnError as error:
        return [Check("object store", False, f"{uri}: {error.what}", error.fix)]
    if uri.startswith("s3://"):
        own = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        return [*found, clock(own or "https://s3.amazonaws.com")]
    return [*found, disk_space("run.storage", Path(uri.removeprefix("file://")))]


def _conditions(store: Store, key: str, etag: str) -> str:
    # other bytes each time: a store may take a refused write of equal bytes for its own retry
    if store.get(key) != b"1":
        return "does not give back what was written"
    if not _refused(store, key, b"2", None):
        return "overwrites an object that must only be created"
    newer = store.put(key, b"3", if_etag=etag)
    if newer == etag or not _refused(store, key, b"4", etag):
        return "overwrites an object that has changed since"
    return ""


def _refused(store: Store, key: str, data: bytes, if_etag: str | None) -> bool:
    try:
        store.put(key, data, create_only=if_etag is None, if_etag=if_etag)
    except PreconditionFailed:
        return True
    return False
