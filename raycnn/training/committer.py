"""Commits in the background: training goes on while the bytes travel."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from raycnn.errors import RaycnnError
from raycnn.training.commit import Commit


class Committer:
    """A thread that commits, never two at a time.

    A failure stays: nothing is started after it, `failure` tells it without waiting and `wait` raises it.
    `submit` does not, since it is called by one rank alone, and the others have to leave with it.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="commit")
        self._last: Future[Commit] | None = None

    def submit(self, work: Callable[[], Commit]) -> None:
        """Start `work` as soon as the one before has ended; not at all if that failed."""
        if self._last is None or self._last.exception() is None:
            self._last = self._thread.submit(work)

    @property
    def failure(self) -> RaycnnError | None:
        """Why the last commit failed, if it has; an error that is no RaycnnError is raised."""
        error = self._last.exception() if self._last is not None and self._last.done() else None
        if error is None or isinstance(error, RaycnnError):
            return error
        raise error

    def wait(self) -> Commit | None:
        """The last commit, when it has ended, or its error raised; None if there was none."""
        return None if self._last is None else self._last.result()
