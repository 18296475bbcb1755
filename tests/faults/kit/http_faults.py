"""What can go wrong with one HTTP request to an object store."""

from __future__ import annotations

import random
import threading
from dataclasses import dataclass, field, replace


@dataclass(frozen=True)
class Request:
    """What the client sent; the key is bucket/key, unquoted."""

    method: str
    key: str
    query: str
    body: bytes


@dataclass(frozen=True)
class Answer:
    """What the client is sent; declared: the Content-Length it is told, None for the true one."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes
    declared: int | None = None


class HangUp(Exception):  # noqa: N818
    """The connection ends without a whole answer; reset: with a TCP reset, not in order."""

    def __init__(self, reset: bool) -> None:
        super().__init__()
        self.reset = bool(reset)


class Fault:
    """One kind of failure; the base class is none. Its text names it in journals."""

    def before(self, request: Request, closing: threading.Event) -> Answer | None:
        """Called instead of forwarding if it answers or hangs up, else before it."""
        return None

    def after(self, answer: Answer, closing: threading.Event) -> Answer:
        """Called when the server has answered; what the client is sent."""
        return answer


@dataclass(frozen=True)
class Refuse(Fault):
    """An answer of the proxy's own, in S3's form; the server sees nothing of the request."""

    status: int
    code: str = "InternalError"

    def before(self, request: Request, closing: threading.Event) -> Answer | None:
        text = f"<Error><Code>{self.code}</Code><Message>made up by a test</Message></Error>"
        body = b"" if request.method == "HEAD" else f'<?xml version="1.0" encoding="UTF-8"?>{text}'.encode()
        return Answer(self.status, [("Content-Type", "application/xml")], body)


@dataclass(frozen=True)
class Delay(Fault):
    """The request goes on only after a while."""

    seconds: float

    def before(self, request: Request, closing: threading.Event) -> Answer | None:
        closing.wait(self.seconds)
        return None


@dataclass(frozen=True)
class Reset(Fault):
    """A TCP reset, before the request is forwarded, or after: then it took effect and its acknowledgement is lost."""

    late: bool = False

    def before(self, request: Request, closing: threading.Event) -> Answer | None:
        if not self.late:
            raise HangUp(reset=True)
        return None

    def after(self, answer: Answer, closing: threading.Event) -> Answer:
        raise HangUp(reset=True)


@dataclass(frozen=True)
class Stall(Fault):
    """No answer, ever, while the connection stays open; before or after the request took effect.

    Attributes:
        reached: set when a request is being stalled.
        freed: set it to cut what is stalled.
    """

    late: bool = False
    reached: threading.Event = field(default_factory=threading.Event, repr=False, compare=False)
    freed: threading.Event = field(default_factory=threading.Event, repr=False, compare=False)

    def before(self, request: Request, closing: threading.Event) -> Answer | None:
        return None if self.late else self._wait(closing)

    def after(self, answer: Answer, closing: threading.Event) -> Answer:
        self._wait(closing)
        return answer

    def _wait(self, closing: threading.Event) -> None:
        self.reached.set()
        while not self.freed.wait(0.05) and not closing.is_set():
            pass
        raise HangUp(reset=True)


@dataclass(frozen=True)
class Cut(Fault):
    """The answer's body ends after `keep` bytes; honest: and Content-Length says so."""

    keep: int
    honest: bool = False

    def after(self, answer: Answer, closing: threading.Event) -> Answer:
        declared = None if self.honest else len(answer.body)
        return replace(answer, body=answer.body[: self.keep], declared=declared)


@dataclass(frozen=True)
class Flip(Fault):
    """One bit of the body of the answer, or of the request (then it is forwarded so), is the other way round.

    byte: where; None: somewhere else each time, as on a bad line.
    """

    byte: int | None = -1
    of_request: bool = False

    def before(self, request: Request, closing: threading.Event) -> Answer | None:
        if self.of_request:
            object.__setattr__(request, "body", self._flipped(request.body))
        return None

    def after(self, answer: Answer, closing: threading.Event) -> Answer:
        return answer if self.of_request else replace(answer, body=self._flipped(answer.body))

    def _flipped(self, body: bytes) -> bytes:
        if not body:
            return body
        changed = bytearray(body)
        changed[(random.randrange(len(body)) if self.byte is None else self.byte) % len(body)] ^= 1
        return bytes(changed)
