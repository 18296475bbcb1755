"""S3 and servers that speak it: whole objects with checksums, conditional writes, our own retries."""

from __future__ import annotations

import base64
import contextlib
import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar

from botocore.exceptions import ClientError

from raycnn.errors import ObjectNotFound, PreconditionFailed, StorageError
from raycnn.storage.aws import FAILURES, answer, client, failure, passing
from raycnn.storage.base import Entry, check_key
from raycnn.storage.retry import retrying

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client
    from mypy_boto3_s3.type_defs import CompletedPartTypeDef, ListObjectsV2OutputTypeDef

T = TypeVar("T")

_PART_BYTES: Final = 64 * 2**20  # larger files go up in parts of at least this size
_MAX_PARTS: Final = 10_000


@dataclass(frozen=True)
class S3Store:
    """The objects below s3://bucket/prefix, a `Store`; credentials come from the AWS chain."""

    bucket: str
    prefix: str = ""
    deadline_s: float = 60.0

    @property
    def uri(self) -> str:
        """s3://bucket/prefix."""
        return f"s3://{self.bucket}/{self.prefix}".rstrip("/")

    def get(self, key: str, offset: int = 0, length: int | None = None) -> bytes:
        """See Store."""
        if length == 0:
            return b""
        request = self._at(key)
        if offset or length is not None:
            request["Range"] = f"bytes={offset}-" + ("" if length is None else str(offset + length - 1))

        def read(s3: S3Client) -> bytes:
            try:
                return s3.get_object(**request)["Body"].read()
            except ClientError as error:
                if answer(error)[0] == 416:  # the object ends before the range
                    return b""
                raise

        return self._call(key, read)

    def stat(self, key: str) -> Entry:
        """See Store."""
        request = self._at(key)
        head = self._call(key, lambda s3: s3.head_object(**request))
        return Entry(key, head["ContentLength"], head["ETag"].strip('"'))

    def put(self, key: str, data: bytes, *, create_only: bool = False, if_etag: str | None = None) -> str:
        """See Store."""
        request = {**self._at(key), **_condition(create_only, if_etag), "ChecksumSHA256": _sha256(data)}
        return self._write(key, lambda s3: s3.put_object(Body=data, **request)["ETag"], lambda: (data,))

    def put_file(self, key: str, path: Path, *, create_only: bool = False) -> str:
        """See Store."""
        try:
            size = path.stat().st_size
            if size <= _PART_BYTES:
                return self.put(key, path.read_bytes(), create_only=create_only)
            return self._put_parts(key, path, size, create_only)
        except OSError as error:
            raise StorageError(f"cannot read: {error.strerror}", where=str(path), fix="check the file") from None

    def folders(self, prefix: str = "") -> list[str]:
        """See Store."""
        above = self._root + (f"{prefix}/" if prefix else "")
        pages = self._pages(above, Delimiter="/")
        found = (folder["Prefix"] for page in pages for folder in page.get("CommonPrefixes", ()))
        return sorted(name[len(above) : -1] for name in found)

    def list(self, prefix: str = "") -> Iterator[Entry]:
        """See Store; the empty objects "folder/" that some tools leave as markers are not listed."""
        for page in self._pages(self._root + prefix):
            for found in page.get("Contents", ()):
                if not found["Key"].endswith("/"):
                    yield Entry(found["Key"][len(self._root) :], found["Size"], found["ETag"].strip('"'))

    def delete(self, keys: Iterable[str]) -> None:
        """See Store."""
        for key in keys:  # one by one: a batch has no order
            self._call(key, partial(_delete, at=self._at(key)))

    def sweep(self) -> None:
        """See Store."""

    def child(self, path: str) -> Self:
        """See Store."""
        return replace(self, prefix=self._key(path))

    @property
    def _root(self) -> str:
        return f"{self.prefix}/" if self.prefix else ""

    def _key(self, key: str) -> str:
        return self._root + check_key(key)

    def _at(self, key: str) -> dict[str, Any]:
        return {"Bucket": self.bucket, "Key": self._key(key)}

    def _pages(self, prefix: str, **extra: Any) -> Iterator[ListObjectsV2OutputTypeDef]:
        request = {"Bucket": self.bucket, "Prefix": prefix, **extra}
        while True:
            page = self._call("", lambda s3: s3.list_objects_v2(**request))
            yield page
            if not page.get("NextContinuationToken"):
                return
            request["ContinuationToken"] = page["NextContinuationToken"]

    def _put_parts(self, key: str, path: Path, size: int, create_only: bool) -> str:
        """Multipart upload: the object appears with the last request; the parts go if anything fails."""
        at = self._at(key)
        part_bytes = max(_PART_BYTES, -(-size // _MAX_PARTS))
        self._abort_uploads(key)
        created = self._call(key, lambda s3: s3.create_multipart_upload(**at, ChecksumAlgorithm="SHA256"))
        upload = {**at, "UploadId": created["UploadId"]}
        try:
            parts = [
                self._put_part(key, upload, number, data)
                for number, data in enumerate(_chunks(path, part_bytes), start=1)
            ]
            end = {**upload, "MultipartUpload": {"Parts": parts}, **_condition(create_only, None)}
            return self._write(
                key,
                lambda s3: s3.complete_multipart_upload(**end)["ETag"],
                lambda: _chunks(path, part_bytes),
            )
        except BaseException:
            with contextlib.suppress(StorageError):
                self._call(key, partial(_abort, upload=upload))
            raise

    def _abort_uploads(self, key: str) -> None:
        """Remove the parts that a killed writer of this key left."""
        at = self._at(key)
        with contextlib.suppress(StorageError):  # listing them may not be allowed
            found = self._call(key, lambda s3: s3.list_multipart_uploads(Bucket=at["Bucket"], Prefix=at["Key"]))
            for upload in found.get("Uploads", ()):
                if upload["Key"] == at["Key"]:
                    self._call(key, partial(_abort, upload={**at, "UploadId": upload["UploadId"]}))

    def _put_part(self, key: str, upload: dict[str, Any], number: int, data: bytes) -> CompletedPartTypeDef:
        request = {**upload, "PartNumber": number, "ChecksumSHA256": _sha256(data)}
        sent = self._call(key, lambda s3: s3.upload_part(Body=data, **request))
        return {"PartNumber": number, "ChecksumSHA256": request["ChecksumSHA256"], "ETag": sent["ETag"]}

    def _write(self, key: str, request: Callable[[S3Client], str], content: Callable[[], Iterable[bytes]]) -> str:
        """Send a write; a refusal because an earlier attempt, whose answer was lost, did it is success."""
        attempts = 0

        def counted(s3: S3Client) -> str:
            nonlocal attempts
            attempts += 1
            return request(s3)

        try:
            return self._call(key, counted).strip('"')
        except (PreconditionFailed, ObjectNotFound) as error:
            if attempts > 1 and self._holds(key, content()):
                return self.stat(key).etag
            # If-Match on a missing key answers 404
            raise PreconditionFailed(error.what, where=error.where, fix="another writer changed it") from None

    def _holds(self, key: str, content: Iterable[bytes]) -> bool:
        size = 0
        try:
            for data in content:
                if self.get(key, size, len(data)) != data:
                    return False
                size += len(data)
            return self.stat(key).size == size
        except ObjectNotFound:
            return False

    def _call(self, key: str, request: Callable[[S3Client], T]) -> T:
        try:
            s3 = client(min(20.0, self.deadline_s / 3))  # a stall must leave time for another try
            return retrying(lambda: request(s3), passing, deadline_s=self.deadline_s)
        except FAILURES as error:
            raise failure(error, f"s3://{self.bucket}/{self._root}{key}") from None


def _abort(s3: S3Client, upload: dict[str, Any]) -> None:
    s3.abort_multipart_upload(**upload)


def _delete(s3: S3Client, at: dict[str, Any]) -> None:
    s3.delete_object(**at)


def _chunks(path: Path, num_bytes: int) -> Iterator[bytes]:
    with path.open("rb") as file:
        while data := file.read(num_bytes):
            yield data


def _sha256(data: bytes) -> str:
    return base64.b64encode(hashlib.sha256(data).digest()).decode()


def _condition(create_only: bool, if_etag: str | None) -> dict[str, Any]:
    if create_only:
        return {"IfNoneMatch": "*"}
    return {} if if_etag is None else {"IfMatch": f'"{if_etag}"'}
