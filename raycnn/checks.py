"""`raycnn doctor`: what would stop a run, found before it starts. Each check is one small function."""

from __future__ import annotations

import http.client
import importlib.metadata
import ipaddress
import logging
import os
import platform
import resource
import shutil
import socket
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from urllib.parse import urlsplit

from packaging.requirements import Requirement

from raycnn.config import Config
from raycnn.errors import PreconditionFailed, RaycnnError
from raycnn.storage import Store, open_images, open_store

GIB = 1 << 30


@dataclass(frozen=True)
class Check:
    """One finding. `ok`: True fine, False must be put right, None a remark or not to be told from here."""

    name: str
    ok: bool | None
    detail: str
    fix: str = ""


def checks(config: Config | None, address: str = "local") -> list[Check]:
    """Every check that applies.

    Args:
        config: the run to check for; without it only the machine and the cluster are looked at.
        address: `local`, an address that `ray.init` takes, or the http(s):// URL of a dashboard.
    """
    temporary = disk_space("temporary space", Path(tempfile.gettempdir()))
    found = [versions(), open_files(), shared_memory(), temporary]
    workers = config.train.workers if config else 1
    if address == "local":
        found.append(processors(workers, *_own_processors()))
    elif address.startswith(("http://", "https://")):
        found.append(cluster_authentication(address))
    else:
        found += _cluster(address, workers)
    return found + (_storage(config) if config else [])


# ---- this machine ----


def versions() -> Check:
    """Whether the installed packages are those that raycnn asks for."""
    told = f"Python {platform.python_version()}, " + ", ".join(
        f"{name} {_installed(name) or 'missing'}" for name in ("ray", "torch", "torchvision", "timm")
    )
    try:
        wrong = unmet(importlib.metadata.requires("raycnn") or [], _installed)
    except importlib.metadata.PackageNotFoundError:
        return Check("versions", None, f"{told}; raycnn is not an installed package", "pip install it")
    return Check("versions", not wrong, "; ".join([told, *wrong]), "pip install -U raycnn" if wrong else "")


def unmet(requirements: Iterable[str], installed: Callable[[str], str | None]) -> list[str]:
    """One line for each requirement (PEP 508; those of extras left out) that is not met."""
    lines = []
    for requirement in map(Requirement, requirements):
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        version = installed(requirement.name)
        if version is None or not requirement.specifier.contains(version, prereleases=True):
            lines.append(f"{requirement.name} is {version or 'missing'}, needs {requirement.specifier}")
    return lines


def processors(workers: int, num_cpus: int, num_gpus: int) -> Check:
    """Whether each worker has a GPU, or a CPU core where there is no GPU."""
    enough = workers <= (num_gpus or num_cpus)
    detail = f"{num_cpus} CPUs and {num_gpus} GPUs for train.workers {workers}"
    return Check("processors", enough or None, detail, "" if enough else "lower train.workers or add nodes")


def open_files() -> Check:
    """Whether enough files and sockets may be open at once; Ray raises its soft limit to the hard one."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    enough = hard == resource.RLIM_INFINITY or hard >= 8192
    detail = "no limit" if hard == resource.RLIM_INFINITY else f"at most {hard}"
    return Check("open files", enough or None, detail, "" if enough else "ulimit -n 65536")


def disk_space(name: str, path: Path) -> Check:
    """Whether the disk of `path` has room: below 1 GiB is a fault, below 10 GiB a remark."""
    while not path.exists():
        path = path.parent
    free = shutil.disk_usage(path).free
    detail = f"{free / GIB:.1f} GiB free at {path}"
    if free >= 10 * GIB:
        return Check(name, True, detail)
    return Check(name, False if free < GIB else None, detail, "free some space or use another disk")


def shared_memory(path: Path = Path("/dev/shm")) -> Check:
    """Whether Ray's object store fits into shared memory; otherwise Ray works from the disk, slowly."""
    if not path.exists():
        return Check("shared memory", None, f"no {path} on this system")
    free = shutil.disk_usage(path).free
    fix = "" if free >= GIB else "enlarge it (Docker: --shm-size=4g)"
    return Check("shared memory", free >= GIB or None, f"{free / GIB:.1f} GiB free at {path}", fix)


def _own_processors() -> tuple[int, int]:
    import torch

    return os.cpu_count() or 1, torch.cuda.device_count()


def _installed(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


# ---- the cluster ----


def cluster_authentication(dashboard_url: str) -> Check:
    """Whether the cluster's job API asks for a token: whoever reaches an open one runs code on every node.

    `ok` is False only for a cluster that is not on loopback and answers /api/jobs/ without a token.
    """
    url = urlsplit(dashboard_url if "://" in dashboard_url else f"http://{dashboard_url}")
    where = f"{url.scheme}://{url.netloc}"
    try:
        status, _ = _ask(f"{where}/api/jobs/")
    except (OSError, http.client.HTTPException) as error:
        fix = "give the address at which its dashboard answers"
        return Check("cluster authentication", None, f"{where} could not be asked: {error}", fix)
    if status in (401, 403):
        return Check("cluster authentication", True, f"{where} asks for a token")
    if status != 200:
        return Check("cluster authentication", None, f"{where} answers /api/jobs/ with status {status}")
    fix = "start the cluster with RAY_AUTH_MODE=token, as cluster.yaml does"
    if _is_loopback(url.hostname or ""):
        detail = f"{where} runs jobs for everyone on this machine without a token"
        return Check("cluster authentication", None, detail, fix)
    return Check("cluster authentication", False, f"{where} runs anyone's jobs without a token", fix)


def _cluster(address: str, workers: int) -> list[Check]:
    import ray

    try:
        with ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR) as context:
            resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
            dashboard = context.dashboard_url
    except Exception as error:  # Ray's own, of many types
        fix = "check the address and the token (RAY_AUTH_MODE=token, ~/.ray/auth_token)"
        return [Check("cluster", False, f"{address} cannot be joined: {' '.join(str(error).split())}", fix)]
    found = [processors(workers, int(resources.get("CPU", 0)), int(resources.get("GPU", 0)))]
    if dashboard:
        return [*found, cluster_authentication(dashboard)]
    return [*found, Check("cluster authentication", None, "the cluster has no dashboard to ask")]


def _is_loopback(host: str) -> bool:
    try:
        found = {str(info[4][0]) for info in socket.getaddrinfo(host, None)}
    except OSError:
        return False
    return all(ipaddress.ip_address(ip.split("%")[0]).is_loopback for ip in found)


def _ask(url: str, method: str = "GET", timeout_s: float = 5.0) -> tuple[int, str | None]:
    # (status, Date header), without a token, a proxy or a redirect followed
    parts = urlsplit(url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.netloc, timeout=timeout_s)
    try:
        connection.request(method, parts.path or "/")
        answer = connection.getresponse()
        return answer.status, answer.getheader("Date")
    finally:
        connection.close()


# ---- the object store ----


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
        _, date = _ask(endpoint, "HEAD")
    except (OSError, http.client.HTTPException) as error:
        return Check("clock", None, f"{endpoint} could not be asked: {error}")
    if date is None:
        return Check("clock", None, f"{endpoint} tells no date")
    return judge_clock(date, time.time())


def judge_clock(date: str, now_s: float) -> Check:
    """The finding for the store's `Date` header and this machine's Unix time: 5 minutes apart is a fault."""
    apart_s = now_s - parsedate_to_datetime(date).timestamp()
    wrong = abs(apart_s) > 300
    detail = f"{abs(apart_s):.0f} s {'ahead of' if apart_s > 0 else 'behind'} the store's"
    return Check("clock", not wrong, detail, "set the clock (NTP)" if wrong else "")


def _storage(config: Config) -> list[Check]:
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
