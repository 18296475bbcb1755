"""The settings of the verbs that look at images through frozen networks."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from raycnn.config.base import Section
from raycnn.config.model import Depth

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
