"""The run's metrics.jsonl, rebuilt from its commits, each of which carries the lines since the one before."""

from __future__ import annotations

import json
from collections.abc import Iterable


def merge(existing_lines: Iterable[str], commit_lines: Iterable[str], step: int) -> list[str]:
    """The lines of the run up to `step`, when a commit at that step is written or resumed from.

    Args:
        existing_lines: what metrics.jsonl holds, in order; a line without a step is dropped.
        commit_lines: what the commit at `step` carries; they replace everything from their first step on.
        step: lines beyond it belong to steps that were lost, and are dropped.

    Returns:
        JSON objects with a key "step", in order of steps, none twice.
    """
    new = [line for line in commit_lines if 0 <= step_of(line) <= step]
    end = min([step + 1, *map(step_of, new)])
    return [line for line in existing_lines if 0 <= step_of(line) < end] + new


def encode_lines(lines: Iterable[str]) -> bytes:
    """The lines as a file."""
    return "".join(line + "\n" for line in lines).encode()


def decode_lines(data: bytes) -> list[str]:
    """The inverse of encode_lines; a last line that was cut short is dropped."""
    return data.decode().split("\n")[:-1]


def step_of(line: str) -> int:
    """The step of a line, -1 for anything else."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, TypeError, LookupError):
        return -1
