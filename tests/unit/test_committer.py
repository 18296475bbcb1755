"""Commits in the background."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest

from raycnn.errors import StorageError
from raycnn.training.commit import Commit
from raycnn.training.committer import Committer


def done(step: int) -> Callable[[], Commit]:
    return lambda: Commit(step, 1, {})


def broken(error: Exception) -> Callable[[], Commit]:
    def work() -> Commit:
        raise error

    return work


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    gate = threading.Event()
    yield gate
    gate.set()


def test_nothing_submitted_is_nothing_to_wait_for() -> None:
    assert Committer().wait() is None
    assert Committer().failure is None


def test_submit_does_not_wait_for_its_own_commit(gate: threading.Event) -> None:
    committer = Committer()
    committer.submit(lambda: Commit(int(gate.wait(10)), 1, {}))
    assert committer.failure is None
    gate.set()
    assert committer.wait() == Commit(1, 1, {})
    assert committer.wait() == Commit(1, 1, {})


def test_two_commits_are_never_in_flight(gate: threading.Event) -> None:
    committer, order = Committer(), []

    def work(step: int) -> Commit:
        order.append(("begin", step))
        if step == 1:
            gate.wait(10)
        order.append(("end", step))
        return Commit(step, 1, {})

    committer.submit(lambda: work(1))
    second = threading.Thread(target=lambda: committer.submit(lambda: work(2)))
    second.start()
    second.join(0.05)
    assert second.is_alive()  # waits for the first
    gate.set()
    second.join(10)
    assert committer.wait() == Commit(2, 1, {})
    assert order == [("begin", 1), ("end", 1), ("begin", 2), ("end", 2)]


def test_a_failure_stays_and_nothing_follows_it() -> None:
    committer, error = Committer(), StorageError("the disk is full")
    committer.submit(broken(error))
    ran: list[int] = []
    committer.submit(lambda: ran.append(1) or Commit(1, 1, {}))  # type: ignore[func-returns-value]
    assert committer.failure is error
    with pytest.raises(StorageError, match="the disk is full"):
        committer.wait()
    assert committer.failure is error
    assert ran == []


def test_an_error_of_the_program_is_raised_as_it_is() -> None:
    committer = Committer()
    committer.submit(broken(ZeroDivisionError()))
    committer.submit(done(2))
    with pytest.raises(ZeroDivisionError):
        _ = committer.failure
    with pytest.raises(ZeroDivisionError):
        committer.wait()
