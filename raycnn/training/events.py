"""metrics.jsonl as a TensorBoard event file."""

from __future__ import annotations

import io
import json

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter


def encode_head() -> bytes:
    """What the file begins with."""
    buffer = io.BytesIO()
    RecordWriter(buffer).write(Event(wall_time=0.0, file_version="brain.Event:2").SerializeToString())
    return buffer.getvalue()


def encode_events(lines: list[str]) -> bytes:
    """One scalar per number of each line, at the line's step; the same lines always give the same bytes."""
    buffer = io.BytesIO()
    writer = RecordWriter(buffer)
    for line in lines:
        values = json.loads(line)
        step, wall_time = values.pop("step"), values.pop("time", 0.0)
        scalars = [
            Summary.Value(tag=tag, simple_value=value)
            for tag, value in values.items()
            if isinstance(value, int | float)
        ]
        writer.write(Event(wall_time=wall_time, step=step, summary=Summary(value=scalars)).SerializeToString())
    return buffer.getvalue()
