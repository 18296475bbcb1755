"""A checkpoint as a value: where its objects lie, and what its manifest says."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from raycnn.errors import CheckpointError
from raycnn.storage.base import parse_json

FORMAT: Final = 1
FOLDER: Final = "checkpoints"
MANIFEST: Final = "MANIFEST.json"

_NAME: Final = re.compile(r"[\w-][\w.-]*")
_KEY: Final = re.compile(rf"{FOLDER}/step-(\d+)\.e(\d+)/([^/]+)")


class Place(NamedTuple):
    """What names a checkpoint, and orders them: its global step, then the lease epoch of its writer."""

    step: int
    epoch: int

    @property
    def name(self) -> str:
        """The folder below checkpoints/: "step-00001200.e003"."""
        return f"step-{self.step:08d}.e{self.epoch:03d}"

    def key(self, file: str) -> str:
        """The key of one of its files in the run's store."""
        return f"{FOLDER}/{self.name}/{file}"


def parse_key(key: str) -> tuple[Place, str] | None:
    """The inverse of `Place.key`; None for a key that no checkpoint has."""
    match = _KEY.fullmatch(key)
    if match is None:
        return None
    place = Place(int(match[1]), int(match[2]))
    return (place, match[3]) if place.key(match[3]) == key else None


@dataclass(frozen=True)
class Commit:
    """A checkpoint that was committed: its global step, the lease epoch of its writer, its manifest."""

    step: int
    epoch: int
    manifest: dict[str, Any]

    @property
    def place(self) -> Place:
        """Its step and epoch."""
        return Place(self.step, self.epoch)

    @property
    def name(self) -> str:
        """The folder below checkpoints/: "step-00001200.e003"."""
        return self.place.name


def encode_manifest(manifest: dict[str, Any]) -> bytes:
    """JSON; equal manifests give equal bytes. ValueError for NaN."""
    return json.dumps(manifest, sort_keys=True, allow_nan=False).encode()


def decode_manifest(data: bytes, place: Place) -> Commit:
    """The commit whose manifest lies at `place`.

    Raises:
        CheckpointError: it is of a newer format.
        ValueError: it is broken, or another checkpoint's.
    """
    try:
        manifest = parse_json(data)
        newer = manifest["format"] > FORMAT
        intact = newer or _well_formed(manifest, place)
    except (LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"not a manifest: {error!r}") from None
    if newer:
        what = f"a checkpoint of format {manifest['format']}, and this raycnn reads formats up to {FORMAT}"
        raise CheckpointError(what, where=place.key(MANIFEST), fix="use a newer raycnn")
    if not intact:
        raise ValueError("not the manifest of this checkpoint")
    return Commit(place.step, place.epoch, manifest)


def _well_formed(manifest: dict[str, Any], place: Place) -> bool:
    return (manifest["format"], manifest["step"], manifest["epoch"]) == (FORMAT, *place) and all(
        _NAME.fullmatch(name) and isinstance(facts["size"], int) and isinstance(facts["sha256"], str)
        for name, facts in manifest["files"].items()
    )
