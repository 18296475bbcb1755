"""Trying again: which failures are worth it, and for how long."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Final, TypeVar

T = TypeVar("T")

_PASSING: Final = frozenset(
    {
        "BadDigest",  # the body was damaged on its way
        "ConditionalRequestConflict",  # another conditional write on this key was in flight
        "IncompleteBody",
        "InternalError",
        "OperationAborted",
        "RequestTimeout",
        "ServiceUnavailable",
        "SlowDown",
        "Throttling",
        "ThrottlingException",
        "XAmzContentChecksumMismatch",
        "XAmzContentSHA256Mismatch",
    }
)


def worth_retrying(status: int | None, code: str = "") -> bool:
    """Whether the same request may succeed later.

    Args:
        status: the HTTP status, None if no whole answer came (refused, reset, timed out, cut short, damaged).
        code: the store's error code, "" if it gave none.
    """
    if status is None or code in _PASSING:
        return True
    return status in (408, 429) or (status >= 500 and status != 501)


def retrying(
    attempt: Callable[[], T],
    passing: Callable[[Exception], bool],
    *,
    deadline_s: float,
    base_s: float = 0.1,
    cap_s: float = 5.0,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
    draw: Callable[[], float] = random.random,
) -> T:
    """What `attempt` returns, tried again after `passing` errors until the next wait would pass the deadline.

    Waits are exponential with full jitter: uniform in [0, min(cap_s, base_s 2^n)]
    (Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015).

    Raises:
        Exception: the last error of `attempt`.
    """
    end = clock() + deadline_s
    wait_s = base_s
    while True:
        try:
            return attempt()
        except Exception as error:
            pause_s = wait_s * draw()
            if not passing(error) or clock() + pause_s >= end:
                raise
        sleep(pause_s)
        wait_s = min(cap_s, 2 * wait_s)
