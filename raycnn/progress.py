"""Progress on stderr: one live line on a terminal, one line every so often elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from typing import Any, TextIO

from raycnn.secrecy import MaskingFormatter, masked

_EVERY_S = 10.0


def quiet_logs() -> None:
    """Let warnings of raycnn and of libraries' loggers through to stderr, secrets masked, but none of Python's own."""
    logging.captureWarnings(True)
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(message)s")
    for handler in logging.getLogger().handlers:
        handler.setFormatter(MaskingFormatter("%(message)s"))
    logging.getLogger("py.warnings").setLevel(logging.ERROR)


class Progress:
    """Shows the newest progress and keeps log lines above it.

    Args:
        stream: where to.
    """

    def __init__(self, stream: TextIO = sys.stderr) -> None:
        self._stream, self._live = stream, stream.isatty()
        self._shown, self._at, self._width = "", time.monotonic() - _EVERY_S, 0
        self._first: tuple[float, int] | None = None

    def show(self, progress: dict[str, Any], lines: list[str]) -> None:
        """Called as often as there is news."""
        for line in filter(None, lines):
            self._clear()
            print(masked(line), file=self._stream, flush=True)
        text = self._text(progress)
        if not text or text == self._shown:
            return
        if self._live:
            self._clear()
            self._stream.write(text)
            self._stream.flush()
            self._width = len(text)
        elif time.monotonic() - self._at >= _EVERY_S:
            print(text, file=self._stream, flush=True)
            self._at = time.monotonic()
        else:
            return
        self._shown = text

    def close(self) -> None:
        """Leave the terminal clean."""
        self._clear()

    def _clear(self) -> None:
        if self._live and self._width:
            self._stream.write("\r" + " " * self._width + "\r")
            self._stream.flush()
        self._width, self._shown = 0, ""

    def _text(self, progress: dict[str, Any]) -> str:
        if "steps" in progress:
            return self._training(progress)
        if "indexed" in progress:
            return f"index: {progress['indexed']} of {progress['objects']} objects"
        return str(progress.get("phase", ""))

    def _training(self, progress: dict[str, Any]) -> str:
        step, steps, now = progress["step"], progress["steps"], time.monotonic()
        if self._first is None or step < self._first[1]:
            self._first = now, step
        since, first = now - self._first[0], self._first[1]
        text = f"step {step}/{steps}"
        if step > first:
            speed = (step - first) / since
            text += f"  {speed * progress['rows']:.0f} images/s  {_duration((steps - step) / speed)} left"
        shown = (name for name in progress if name == "loss" or name.startswith("val "))
        return text + "".join(f"  {name} {progress[name]:.4g}" for name in shown if progress[name] is not None)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
