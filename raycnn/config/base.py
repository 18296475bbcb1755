"""What all sections of the config share."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

OPERATIONAL: Final = "operational"
"""Marks a field that does not change results: where, how fast, how often, how long."""
LATER: Final = "later"
"""Marks a field that came after runs had been started: at its default, what it had been before, it is no part of the
identity's hash."""

Fraction = Annotated[float, Field(ge=0, lt=1)]
Metric = Literal[
    "accuracy", "balanced_accuracy", "macro_f1", "auroc", "loss",
    "f1", "average_precision", "brier", "map", "micro_f1", "subset_accuracy", "rmse", "mae", "r2",
]  # fmt: skip

Tta = Literal["none", "hflip", "flips", "crops", "crops_hflip"]
Prior = Literal["trained", "rows", "uniform", "estimated"]


class Section(BaseModel):
    """Base of all sections: immutable, no unknown fields, finite numbers only."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        allow_inf_nan=False,
        protected_namespaces=(),
    )
