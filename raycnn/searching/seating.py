"""Whose turn it is in a pack: trials that stand at the same step go together, the hindmost first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

GATHER_S: Final = 0.5
"""How long the others are waited for after the last word of any trial."""
GATHER_AT_MOST_S: Final = 2.5
"""How long one that asked waits for others at most; nobody who is late, or stopped, can hold it up longer."""


@dataclass
class Seat:
    """Where one trial stands.

    Args:
        key: what it shares with others; only trials of one key can go together.
        step: how far it is.
        asked_at: when it asked for its next evaluation; None: it has not.
    """

    key: str
    step: int
    asked_at: float | None = None


class Seating:
    """The seats of a pack. Times are of one monotonic clock, in seconds.

    Attributes:
        gathers: whether one that asked waits for others, with whom it would share passes over the images.
    """

    def __init__(self) -> None:
        self.gathers = True
        self._seats: dict[str, Seat] = {}
        self._last_word = float("-inf")

    def sit(self, trial: str, key: str, step: int, now: float) -> None:
        """A trial that comes, or has moved to another step."""
        self._seats[trial] = Seat(key, step)
        self._last_word = now

    def ask(self, trial: str, now: float) -> None:
        """It wants to go on."""
        if trial in self._seats:
            self._seats[trial].asked_at = now
            self._last_word = now

    def leave(self, trial: str) -> None:
        """It does not go on."""
        self._seats.pop(trial, None)

    def turn(self, now: float) -> list[str]:
        """The trials that go next, together; empty while there is nobody, or somebody to wait for."""
        asked = [seat for seat in self._seats.values() if seat.asked_at is not None]
        if not asked:
            return []
        first = min(asked, key=lambda seat: (seat.step, seat.key))
        group = {t: seat for t, seat in self._seats.items() if (seat.key, seat.step) == (first.key, first.step)}
        late = [s for s in self._seats.values() if s.asked_at is None and s.step <= first.step]
        since = min(seat.asked_at for seat in group.values() if seat.asked_at is not None)
        if not self.gathers or (not late and first.step > 0):  # only at the start may there be others on their way
            return list(group)
        gathered = not late and now >= self._last_word + GATHER_S
        return list(group) if gathered or now >= since + GATHER_AT_MOST_S else []

    def wait_s(self, now: float) -> float | None:
        """Seconds after which `turn` may answer otherwise without a new word; None: never."""
        asked = [seat.asked_at for seat in self._seats.values() if seat.asked_at is not None]
        if not asked:
            return None
        due = (self._last_word + GATHER_S - now, min(asked) + GATHER_AT_MOST_S - now)
        return max(0.01, min((each for each in due if each > 0), default=0.01))
