"""What a run's folder shows of its commits: metrics.jsonl, and the same as TensorBoard's events.

Held in memory by the run's one writer, so that a commit costs the work of its own lines, however many came before.
"""

from __future__ import annotations

from raycnn.errors import ObjectNotFound
from raycnn.storage import Store
from raycnn.training.events import encode_events, encode_head
from raycnn.training.metrics_log import decode_lines, encode_lines, merge, step_of


class Shown:
    """The two files; nothing is read before the first update.

    Args:
        store: the run's folder.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._step: int | None = None
        self._metrics, self._events = b"", b""

    def update(self, lines: list[str], step: int) -> None:
        """Bring both up to `step`, whose commit holds `lines`; later ones are dropped."""
        new = merge([], lines, step)
        if self._step is None or min([step + 1, *map(step_of, new)]) <= self._step:
            new = merge(read_lines(self._store), lines, step)
            self._metrics, self._events = b"", encode_head()
        self._step = step
        self._metrics += encode_lines(new)
        self._events += encode_events(new)
        self._store.put("metrics.jsonl", self._metrics)
        self._store.put("events/events.out.tfevents.0.raycnn", self._events)


def read_lines(store: Store) -> list[str]:
    """The lines of the run's metrics.jsonl."""
    try:
        return decode_lines(store.get("metrics.jsonl"))
    except ObjectNotFound:
        return []
