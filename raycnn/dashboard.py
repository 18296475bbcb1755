"""Whether a cluster's job API asks for a token: whoever reaches an open one runs code on every node."""

from __future__ import annotations

import http.client
import ipaddress
import socket
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from raycnn.errors import ConfigError

ADVICE: Final = "start the cluster with RAY_AUTH_MODE=token, as cluster.yaml does"
_ASKS: Final = (401, 403)
_OPEN: Final = 200


@dataclass(frozen=True)
class JobApi:
    """What the job API at `where` said to somebody without a token.

    Args:
        where: scheme://host:port.
        status: of the answer; None without one.
        failure: why there was none.
        loopback: whether only this machine reaches it.
    """

    where: str
    status: int | None
    failure: str
    loopback: bool

    @property
    def is_open(self) -> bool | None:
        """True: it runs anyone's jobs; False: it asks for a token; None: not to be told."""
        return {_OPEN: True, **dict.fromkeys(_ASKS, False)}.get(self.status or 0)


def job_api(dashboard_url: str) -> JobApi:
    """Asks the dashboard at host:port or an http(s) uri, without a token."""
    url = urlsplit(dashboard_url if "://" in dashboard_url else f"http://{dashboard_url}")
    where = f"{url.scheme}://{url.netloc.rpartition('@')[2]}"
    loopback = is_loopback(url.hostname or "")
    try:
        return JobApi(where, ask(f"{where}/api/jobs/")[0], "", loopback)
    except (OSError, http.client.HTTPException) as error:
        return JobApi(where, None, str(error) or type(error).__name__, loopback)


def refuse_open(dashboard_url: str) -> None:
    """Refuse to work on a cluster whose job API others reach and that asks nobody for a token.

    Raises:
        ConfigError: it is such a one.
    """
    api = job_api(dashboard_url)
    if api.is_open and not api.loopback:
        raise ConfigError("this cluster runs anyone's jobs without a token", where=api.where, fix=ADVICE)


def is_loopback(host: str) -> bool:
    """Whether every address of the host is one of this machine's loopback."""
    try:
        found = {str(info[4][0]) for info in socket.getaddrinfo(host, None)}
    except OSError:
        return False
    return all(ipaddress.ip_address(ip.split("%")[0]).is_loopback for ip in found)


def ask(url: str, method: str = "GET", timeout_s: float = 5.0) -> tuple[int, str | None]:
    """(status, Date header) of an answer, asked for without a token or a proxy; no redirect is followed."""
    parts = urlsplit(url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.netloc.rpartition("@")[2], timeout=timeout_s)
    try:
        connection.request(method, parts.path or "/")
        answer = connection.getresponse()
        return answer.status, answer.getheader("Date")
    finally:
        connection.close()
