"""python -m tests.bench.growth [PARTS...] [--measured FILE]: measure, simulate, one table and plots of both."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from tests.bench.growth.measure import PARTS, measure
from tests.bench.growth.report import report

OUT = Path(__file__).parents[1] / "out"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.growth", description=main.__doc__)
    parser.add_argument("parts", nargs="*", metavar="PARTS", help=f"measure these alone anew: {', '.join(PARTS)}")
    parser.add_argument("--measured", type=Path, metavar="FILE", help="take what was measured before")
    options = parser.parse_args()
    if unknown := set(options.parts) - PARTS.keys():
        parser.error(f"unknown parts: {', '.join(unknown)}")
    if options.measured:
        found = json.loads(options.measured.read_text())
    else:
        found = measure(options.parts or list(PARTS), OUT / "growth.json")
    if missing := PARTS.keys() - found.keys():
        parser.exit(message=f"not measured yet: {', '.join(missing)}\n")
    print(report(found, OUT))


if __name__ == "__main__":
    main()
