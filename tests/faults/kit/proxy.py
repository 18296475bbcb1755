"""A proxy in front of a real S3 server that breaks what it is told to break, and keeps a journal.

    with Proxy(server.endpoint) as proxy:
        proxy.rules = [Rule(Refuse(503, "SlowDown"), "PUT", "bucket/run/*", nth=2, count=3)]
        ...
        assert [record.fault for record in proxy.journal] == ...

Requests go on with the Host header they came with, which is what SigV4 signed, so the server accepts them unchanged.
"""

from __future__ import annotations

import contextlib
import http.client
import socket
import socketserver
import struct
import threading
from collections import Counter
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from http.server import BaseHTTPRequestHandler
from typing import Any, Self
from urllib.parse import unquote, urlsplit

from raycnn.data.keyed import derive_seed
from tests.faults.kit.http_faults import Answer, Fault, HangUp, Request, Reset

_HOP_BY_HOP = ("connection", "keep-alive", "transfer-encoding", "content-length", "expect")


@dataclass
class Rule:
    """What happens to some requests.

    Args:
        fault: what is done to them.
        method: pattern (fnmatch) of the method.
        key: pattern of bucket/key; a listing's key is the bucket.
        nth: the first match that is hit, counted from 1.
        count: how many matches are hit from there on; None: all.
        chance: of those, the share that is hit, by draws from `seed`, method, key below the bucket and turn.
        seed: see chance.
    """

    fault: Fault
    method: str = "*"
    key: str = "*"
    nth: int = 1
    count: int | None = 1
    chance: float = 1.0
    seed: int = 0
    seen: int = field(default=0, init=False)

    def hits(self, request: Request, turn: int) -> bool:
        """Whether this request is one; counts it if it matches. turn: requests of this method and key so far."""
        if not (fnmatchcase(request.method, self.method) and fnmatchcase(request.key, self.key)):
            return False
        self.seen += 1
        if self.seen < self.nth or (self.count is not None and self.seen >= self.nth + self.count):
            return False
        key = request.key.partition("/")[2]  # buckets of tests have names of their own each time
        return derive_seed(self.seed, f"{self.fault}/{request.method}/{key}/{turn}") < self.chance * 2**63


@dataclass
class Record:
    """One line of the journal: what was asked, what was done to it, the status the client got (None: no answer)."""

    method: str
    key: str
    query: str
    fault: str = ""
    status: int | None = None


class Proxy:
    """Forwards to `upstream` (http://host:port) while the context is open.

    Attributes:
        endpoint: where it listens.
        rules: the first that hits decides; may be changed at any time.
        journal: every request in the order of arrival.
    """

    def __init__(self, upstream: str) -> None:
        self.upstream = urlsplit(upstream).netloc
        self.rules: list[Rule] = []
        self.journal: list[Record] = []
        self.closing = threading.Event()
        self._turns: Counter[tuple[str, str]] = Counter()
        self._lock = threading.Lock()
        self._server: _Server | None = None
        self._port = 0

    @property
    def endpoint(self) -> str:
        """http://127.0.0.1:PORT."""
        return f"http://127.0.0.1:{self._port}"

    def __enter__(self) -> Self:
        self.up()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self.down()

    def up(self) -> None:
        """Listen, at first on a port that the system chooses, later on the same one."""
        self._server = _Server(("127.0.0.1", self._port), _Handler)
        self._server.proxy = self
        self._port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def down(self) -> None:
        """Refuse connections from now on, and cut those there are."""
        if self._server:
            self._server.shutdown()
            self._server.server_close()
            self._server.cut_all()
            self._server = None

    def faults(self) -> list[str]:
        """What was done to requests, without those that passed."""
        return [record.fault for record in self.journal if record.fault]

    def admit(self, request: Request) -> tuple[Record, Fault | None]:
        """Note a request; what shall be done to it."""
        with self._lock:
            turn = self._turns[request.method, request.key]
            self._turns[request.method, request.key] += 1
            fault = next((rule.fault for rule in self.rules if rule.hits(request, turn)), None)
            record = Record(request.method, request.key, request.query, str(fault or ""))
            self.journal.append(record)
        return record, fault


class _Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 128
    proxy: Proxy

    def __init__(self, *arguments: Any) -> None:
        self._open: set[socket.socket] = set()
        super().__init__(*arguments)

    def process_request(self, request: Any, client_address: Any) -> None:
        self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:  # no shutdown() first: a reset must not begin with a FIN
        self._open.discard(request)
        self.close_request(request)

    def cut_all(self) -> None:
        for connection in list(self._open):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that went away in the middle are what faults are about."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else each answer waits 40 ms for the client to acknowledge its headers
    server: _Server

    def setup(self) -> None:
        super().setup()
        self._upstream: http.client.HTTPConnection | None = None

    def finish(self) -> None:
        super().finish()
        if self._upstream:
            self._upstream.close()

    def log_message(self, *_: Any) -> None:
        """The journal is the log."""

    def relay(self) -> None:
        """One request, and what is done to it."""
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = urlsplit(self.path)
        request = Request(self.command, unquote(parts.path).strip("/"), parts.query, body)
        record, fault = self.server.proxy.admit(request)
        try:
            answer = fault.before(request, self.server.proxy.closing) if fault else None
            answer = answer or self._forward(request)
            if fault:
                answer = fault.after(answer, self.server.proxy.closing)
            record.status = answer.status
            self._send(answer)
        except HangUp as end:
            self._hang_up(end)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = relay

    def _forward(self, request: Request) -> Answer:
        headers = {name: value for name, value in self.headers.items() if name.lower() not in _HOP_BY_HOP}
        for last in (False, True):  # the server may have closed a connection that was kept
            self._upstream = self._upstream or http.client.HTTPConnection(self.server.proxy.upstream, timeout=60)
            try:
                self._upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
                for name, value in {**headers, "Content-Length": str(len(request.body))}.items():
                    self._upstream.putheader(name, value)
                self._upstream.endheaders(request.body)
                got = self._upstream.getresponse()
                return Answer(got.status, got.getheaders(), got.read())
            except (OSError, http.client.HTTPException):
                self._upstream.close()
                self._upstream = None
                if last:
                    raise HangUp(Reset) from None
        raise AssertionError

    def _send(self, answer: Answer) -> None:
        self.send_response_only(answer.status)
        length = str(len(answer.body) if answer.declared is None else answer.declared)
        for name, value in answer.headers:
            if name.lower() == "content-length" and self.command == "HEAD":
                length = value
            elif name.lower() not in _HOP_BY_HOP:
                self.send_header(name, value)
        if answer.status != 204:
            self.send_header("Content-Length", length)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body)
        if answer.declared is not None and answer.declared != len(answer.body):
            self.close_connection = True

    def _hang_up(self, end: HangUp) -> None:
        self.close_connection = True
        if end.reset:  # close() then sends a reset
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
