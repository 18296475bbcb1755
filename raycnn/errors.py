"""Every failure a user can cause, with the exit code it ends with.

RaycnnError
├── ConfigError              2   the config or the command line
├── DataError                3   images, labels, manifests
├── DivergedError            4   NaN or Inf in training
├── StorageError             5   the object store or the disk
│   ├── ObjectNotFound           the key does not exist
│   ├── ObjectDamaged            its bytes came incomplete or with another checksum, again and again
│   └── PreconditionFailed       a conditional write lost
├── RunBusyError             6   another job writes this run
├── CheckpointError          7   a checkpoint, weights or labels that do not fit
├── NoProgressError          8   the same step failed again and again
└── Preempted               75   asked to leave; resubmit the same command
"""

from __future__ import annotations

import errno
import json
from typing import Any

from raycnn.secrecy import masked


class RaycnnError(Exception):
    """A failure told in one line: what went wrong, where, and what to do about it; secrets in it are masked.

    Args:
        what: what happened, in words.
        where: the field, key, file or step it happened at.
        fix: what the user can do.
    """

    code = 1

    def __init__(self, what: str, *, where: str = "", fix: str = "") -> None:
        self.what, self.where, self.fix = masked(what), masked(where), masked(fix)
        super().__init__(self.what, self.where, self.fix)

    def __str__(self) -> str:
        line = self.what + (f" ({self.where})" if self.where else "") + (f": {self.fix}" if self.fix else "")
        return printable(" ".join(line.split()))

    def __reduce__(self) -> tuple[Any, ...]:  # keyword arguments do not survive Exception's own pickling
        return _rebuild, (type(self), self.what, self.where, self.fix)

    def as_json(self) -> dict[str, Any]:
        """The error as `--json` prints it: {code, what, where, fix}."""
        return {"code": self.code, "what": self.what, "where": self.where, "fix": self.fix}


def printable(text: str) -> str:
    """The text with control characters written out: a key or a label could steer a terminal, or turn a line around."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def disk_full(error: OSError) -> bool:
    """Whether it says that there is no space left, or no quota."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def _rebuild(kind: type[RaycnnError], what: str, where: str, fix: str) -> RaycnnError:
    return kind(what, where=where, fix=fix)


class ConfigError(RaycnnError):
    """A field, flag or combination of settings that cannot be used."""

    code = 2


class DataError(RaycnnError):
    """Images, labels or a manifest that cannot be used."""

    code = 3


class DivergedError(RaycnnError):
    """A loss or gradient became NaN or Inf."""

    code = 4


class StorageError(RaycnnError):
    """The object store or the disk refused or did not answer within the deadline."""

    code = 5


class ObjectNotFound(StorageError):  # noqa: N818
    """The key does not exist."""


class ObjectDamaged(StorageError):  # noqa: N818
    """Its bytes came incomplete, or not with the checksum that they went up with, until the deadline."""


class PreconditionFailed(StorageError):  # noqa: N818
    """A conditional write found another state than it expected."""


class RunBusyError(RaycnnError):
    """Another job holds this run."""

    code = 6


class CheckpointError(RaycnnError):
    """A checkpoint, a weight file or a label map that does not fit this run."""

    code = 7


class NoProgressError(RaycnnError):
    """The same step failed again and again without a new commit."""

    code = 8


class Preempted(RaycnnError):  # noqa: N818
    """Asked to leave; the same command continues the run."""

    code = 75


def encode_error(error: RaycnnError) -> str:
    """An error as text that `decode_error` reads."""
    return json.dumps({"kind": type(error).__name__, "what": error.what, "where": error.where, "fix": error.fix})


def decode_error(text: str) -> RaycnnError:
    """The error that `encode_error` wrote."""
    told = json.loads(text)
    kinds = {kind.__name__: kind for kind in _all_kinds(RaycnnError)}
    return kinds[told["kind"]](told["what"], where=told["where"], fix=told["fix"])


def _all_kinds(kind: type[RaycnnError]) -> list[type[RaycnnError]]:
    return [kind, *(each for below in kind.__subclasses__() for each in _all_kinds(below))]
