"""What a search may spend, over all its starts together."""

from __future__ import annotations

import json
import time
from typing import Final

from raycnn.config import SearchConfig
from raycnn.errors import ObjectNotFound
from raycnn.storage import Store

_KEY: Final = "search/spent.json"


class Budget:
    """Counts from its making on; what earlier starts of the search noted counts too.

    Args:
        search: the limits, see search.budget_s and search.budget_gpu_hours.
        store: the run's folder.
        places: GPUs, or cores without GPUs, that the search holds.
    """

    def __init__(self, search: SearchConfig, store: Store, places: int) -> None:
        self._search, self._store, self._places = search, store, places
        self._started = time.monotonic()
        try:
            before = json.loads(store.get(_KEY))
        except ObjectNotFound:
            before = {"seconds": 0.0, "gpu_hours": 0.0}
        self._seconds, self._gpu_hours = before["seconds"], before["gpu_hours"]

    def spent(self) -> tuple[float, float]:
        """(seconds, GPU hours) until now."""
        seconds = time.monotonic() - self._started
        return self._seconds + seconds, self._gpu_hours + seconds / 3600 * self._places

    def over(self) -> bool:
        """Whether a limit is reached."""
        limits = (self._search.budget_s, self._search.budget_gpu_hours)
        return any(limit is not None and spent >= limit for spent, limit in zip(self.spent(), limits, strict=True))

    def note(self) -> None:
        """Keep what is spent, for the next start."""
        seconds, gpu_hours = self.spent()
        self._store.put(_KEY, json.dumps({"seconds": round(seconds, 1), "gpu_hours": round(gpu_hours, 6)}).encode())
