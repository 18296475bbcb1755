from __future__ import annotations

import pytest

from raycnn.storage.retry import retrying, worth_retrying


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        (None, "", True),  # reset, refused, timed out, cut short
        (500, "InternalError", True),
        (502, "", True),
        (503, "SlowDown", True),
        (501, "NotImplemented", False),
        (429, "", True),
        (408, "", True),
        (400, "RequestTimeout", True),
        (400, "BadDigest", True),
        (400, "InvalidArgument", False),
        (409, "ConditionalRequestConflict", True),
        (409, "BucketAlreadyExists", False),
        (412, "PreconditionFailed", False),
        (404, "NoSuchKey", False),
        (403, "AccessDenied", False),
        (403, "RequestTimeTooSkewed", False),
        (301, "PermanentRedirect", False),
    ],
)
def test_which_failures_are_worth_another_try(status: int | None, code: str, expected: bool) -> None:
    assert worth_retrying(status, code) is expected


class Clock:
    """Time that passes only by sleeping and by attempts."""

    def __init__(self, draw: float = 1.0) -> None:
        self.now, self.naps, self._draw = 0.0, [], draw
        self.naps: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.naps.append(seconds)
        self.now += seconds

    def run(self, failures: int, *, deadline_s: float, attempt_s: float = 0.0) -> int:
        calls = 0

        def attempt() -> int:
            nonlocal calls
            calls += 1
            self.now += attempt_s
            if calls <= failures:
                raise TimeoutError(calls)
            return calls

        return retrying(
            attempt,
            lambda error: isinstance(error, TimeoutError),
            deadline_s=deadline_s,
            clock=lambda: self.now,
            sleep=self.sleep,
            draw=lambda: self._draw,
        )


def test_waits_double_up_to_the_cap_and_are_jittered() -> None:
    clock = Clock()
    assert clock.run(8, deadline_s=1000) == 9
    assert clock.naps == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5, 5])
    half = Clock(draw=0.5)
    half.run(8, deadline_s=1000)
    assert half.naps == pytest.approx([wait / 2 for wait in clock.naps])


def test_gives_up_before_the_deadline_with_the_last_error() -> None:
    clock = Clock()
    with pytest.raises(TimeoutError) as caught:
        clock.run(10**6, deadline_s=60, attempt_s=1)
    assert clock.now <= 60
    assert caught.value.args[0] == len(clock.naps) + 1 > 10


def test_other_errors_pass_at_once() -> None:
    def attempt() -> None:
        calls.append(1)
        raise ValueError("final")

    calls: list[int] = []
    with pytest.raises(ValueError, match="final"):
        retrying(attempt, lambda error: False, deadline_s=60)
    assert len(calls) == 1
