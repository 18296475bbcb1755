"""The settings of the verbs that look at images through frozen networks."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from raycnn.config.base import Section
from raycnn.config.model import NAMES, Depth

Step = Annotated[int, Field(ge=0)] | Literal["best", "latest"]


class FeaturesConfig(Section):
    """What `raycnn features` reads and writes."""

    cuts: Annotated[tuple[Depth, ...], Field(min_length=1)] = (0,)
    """Where the network is cut, as depths of model.unfreeze; 0: what goes into the head."""
    source: str | None = None
    """Images, as predict.source; default: all rows of the run's index."""
    output: str | None = None
    """Parquet file to write; default: features/ of the run."""
    step: Step = "best"
    """Checkpoint: a step, best or latest; before the first start of the run the weights that it would start from."""


class Candidate(Section):
    """A network to choose from."""

    name: Annotated[str, Field(pattern=NAMES)]
    """As model.name."""
    weights: str = "default"
    """As model.weights."""

    @model_validator(mode="before")
    @classmethod
    def _just_the_name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value


class ChooseConfig(Section):
    """What `raycnn choose` compares."""

    networks: tuple[Candidate, ...] = ()
    """Networks to choose from: names, or {name, weights}; default: model.name alone, for its cuts."""
    rows: Annotated[int, Field(ge=10)] = 5000
    """Training and validation rows that are looked at, at most; which is decided by the hash of their keys."""
    folds: Annotated[int, Field(ge=2)] = 5
    """Parts of these rows, each of which is predicted by a head that was fitted to the others."""


class ShiftConfig(Section):
    """What `raycnn shift` compares with the training rows."""

    target: str | None = None
    """Images without labels, as predict.source."""
    rows: Annotated[int, Field(ge=10)] = 2000
    """Images of either side that are looked at, at most; which is decided by the hash of their keys."""
    step: Step = "best"
    """Checkpoint, see features.step."""
    listed: Annotated[int, Field(ge=0)] = 10
    """Images of the target that are listed, the most drifted ones first."""
