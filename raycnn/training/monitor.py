"""The actor between a job's driver and its rank 0: progress and outcome one way, the wish to leave the other."""

from __future__ import annotations

import logging
import threading
from collections.abc import Collection
from typing import Any

from raycnn.cluster import draining
from raycnn.errors import RaycnnError
from raycnn.secrecy import MaskingFormatter


class Monitor:
    """Holds the newest progress, log lines not yet shown, and how the worker group ended."""

    def __init__(self) -> None:
        self._progress: dict[str, Any] = {}
        self._lines: list[str] = []
        self._leave = False
        self._outcome: dict[str, Any] | RaycnnError | None = None

    def report(self, progress: dict[str, Any], lines: list[str]) -> bool:
        """Called by rank 0; returns whether the job was asked to leave."""
        self._progress = {**self._progress, **progress}
        self._lines += lines
        return self._leave

    def read(self) -> tuple[dict[str, Any], list[str]]:
        """Called by the driver: the newest progress, and the log lines since the last call."""
        lines, self._lines = self._lines, []
        return self._progress, lines

    def begin(self) -> None:
        """Called by the driver before it starts a worker group."""
        self._leave, self._outcome = False, None

    def ask_to_leave(self) -> None:
        """Called by the driver: commit and end at the next step."""
        self._leave = True

    def finish(self, outcome: dict[str, Any] | RaycnnError) -> None:
        """Called by rank 0 when the group ends in a way that is not to be retried."""
        self._outcome = outcome

    def outcome(self) -> dict[str, Any] | RaycnnError | None:
        """How it ended; None when the group died instead."""
        return self._outcome


class LinesToReporter(logging.Handler):
    """Sends what a worker logs to its reporter, since Ray shows a worker's own output only when asked to."""

    def __init__(self, reporter: Reporter) -> None:
        super().__init__(logging.WARNING)
        self.setFormatter(MaskingFormatter())
        self._reporter = reporter

    def emit(self, record: logging.LogRecord) -> None:
        """One record, as one line."""
        self._reporter.line(self.format(record))


class Reporter:
    """Rank 0's end: sends progress at most every `every_s`, never blocks the loop, and learns of the wish to leave.

    Args:
        monitor: handle of the actor.
        nodes: ids of the nodes that the ranks are on; when one of them is to be taken away, the group leaves as well.
        every_s: time between two looks.
    """

    def __init__(self, monitor: Any, nodes: Collection[str] = (), *, every_s: float = 0.5) -> None:
        self._monitor, self._nodes = monitor, set(nodes)
        self._progress: dict[str, Any] = {}
        self._lines: list[str] = []
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self.leaving = False
        self._thread = threading.Thread(target=self._send_often, args=(every_s,), daemon=True)
        self._thread.start()

    def progress(self, **values: Any) -> None:
        """Newest values by name."""
        with self._lock:
            self._progress.update(values)

    def line(self, text: str) -> None:
        """One line for the driver's stderr."""
        with self._lock:
            self._lines.append(text)

    def close(self) -> None:
        """Send what is left."""
        self._closed.set()
        self._thread.join()
        self._send()

    def _send_often(self, every_s: float) -> None:
        while not self._closed.wait(every_s):
            self._send()

    def _send(self) -> None:
        import ray

        with self._lock:
            progress, lines = self._progress, self._lines
            self._progress, self._lines = {}, []
        asked = ray.get(self._monitor.report.remote(progress, lines))
        self.leaving = asked or bool(self._nodes and self._nodes & draining())
