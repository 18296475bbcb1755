"""What is measured on this machine, part by part, kept as JSON."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.bench.growth import controllers, decoding, requests, rows, streams
from tests.bench.table import machine

PARTS = {
    "decoding": decoding.measure,
    "requests": requests.measure,
    "streams": lambda root: streams.measure(),
    "controllers": lambda root: controllers.measure(),
    "rows": rows.measure,
}


def measure(parts: list[str], path: Path) -> dict[str, Any]:
    """The named parts, those measured anew beside what the file holds of others."""
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    for part in parts:
        print(f"==> {part}", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory(prefix="raycnn-growth-") as folder:
            found[part] = PARTS[part](Path(folder))
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps({**found, "machine": machine()}, indent=1) + "\n")
    return found
