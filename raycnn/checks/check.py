"""What a check finds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

GIB: Final = 1 << 30


@dataclass(frozen=True)
class Check:
    """One finding. `ok`: True fine, False must be put right, None a remark or not to be told from here."""

    name: str
    ok: bool | None
    detail: str
    fix: str = ""
