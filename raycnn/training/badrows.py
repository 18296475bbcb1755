"""Images that could be indexed but not read in training: recorded, never trained on, within a budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pyarrow as pa

from raycnn.data.manifest import shown_names
from raycnn.errors import DataError
from raycnn.training.state import TrainState


@dataclass(frozen=True)
class BadRows:
    """The budget and what it is counted against.

    Args:
        table: the training rows.
        rows: all rows of the index.
        quarantined: those that the index quarantined.
        budget: share of rows and quarantined objects that may be bad.
    """

    table: pa.Table
    rows: int
    quarantined: int
    budget: float

    def count(self, state: TrainState, failures: Sequence[tuple[int, str]]) -> TrainState:
        """The state with these (row, reason) recorded.

        Raises:
            DataError: more images are bad than the budget allows; names the first 20.
        """
        keys = shown_names(self.table).take(pa.array([row for row, _ in failures])).to_pylist()
        reasons = [reason for _, reason in failures]
        bad = {**state.bad_rows, **dict(zip(keys, reasons, strict=True))}
        found, objects = self.quarantined + len(bad), self.quarantined + self.rows
        if found > self.budget * objects:
            named = ", ".join(f"{key} ({reason})" for key, reason in list(bad.items())[:20])
            raise DataError(
                f"{found} of {objects} images cannot be read, over the budget; in training: {named}",
                where="data.bad_image_budget",
                fix="repair or remove them and index again, or raise the budget",
            )
        return replace(state, bad_rows=bad)
