"""metrics.jsonl as a TensorBoard event file."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary


def encode_head() -> bytes:
    """What the file begins with."""
    return _records([Event(wall_time=0.0, file_version="brain.Event:2")])


def encode_events(lines: list[str]) -> bytes:
    """One scalar per number of each line, at the line's step; the same lines always give the same bytes."""
    return _records(map(_event, lines))


def _event(line: str) -> Event:
    values = json.loads(line)
    step, wall_time = values.pop("step"), values.pop("time", 0.0)
    scalars = [
        Summary.Value(tag=tag, simple_value=value) for tag, value in values.items() if isinstance(value, int | float)
    ]
    return Event(wall_time=wall_time, step=step, summary=Summary(value=scalars))


def _records(events: Iterable[Event]) -> bytes:
    from tensorboard.summary.writer.record_writer import RecordWriter  # takes 0.2 s, with boto3 and more behind it

    buffer = io.BytesIO()
    writer = RecordWriter(buffer)
    for event in events:
        writer.write(event.SerializeToString())
    return buffer.getvalue()
