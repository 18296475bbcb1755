"""The settings of a search."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from raycnn.config.base import Metric, Section


class Distribution(Section):
    """Values of one setting in a search: exactly one of the kinds below."""

    loguniform: tuple[float, float] | None = None
    """[low, high): uniform in the logarithm."""
    uniform: tuple[float, float] | None = None
    """[low, high)."""
    quniform: tuple[float, float, float] | None = None
    """[low, high, step]: uniform, rounded to multiples of step."""
    randint: tuple[int, int] | None = None
    """[low, high): whole numbers."""
    choice: tuple[Any, ...] | None = None
    """Any of these, equally likely."""
    grid: tuple[Any, ...] | None = None
    """Every one of these, crossed with the other grids."""

    @model_validator(mode="after")
    def _exactly_one(self) -> Distribution:
        kinds = [name for name in type(self).model_fields if getattr(self, name) is not None]
        if len(kinds) != 1:
            raise ValueError(f"give exactly one of {', '.join(type(self).model_fields)}")
        values = getattr(self, kinds[0])
        if kinds[0] in ("choice", "grid"):
            if not values:
                raise ValueError(f"{kinds[0]} needs at least one value")
        elif values[0] >= values[1]:
            raise ValueError(f"{kinds[0]} must be [low, high] with low < high")
        if kinds[0] == "loguniform" and values[0] <= 0:
            raise ValueError("loguniform needs low > 0")
        if kinds[0] == "quniform" and not 0 < values[2] <= values[1] - values[0]:
            raise ValueError("quniform must be [low, high, step] with a step that fits between them")
        return self

    @property
    def kind(self) -> str:
        """Which of the kinds it is."""
        return next(name for name in type(self).model_fields if getattr(self, name) is not None)


class SearchConfig(Section):
    """What `raycnn search` varies, and how it looks for the best."""

    space: dict[str, Distribution] = Field(default={})
    """Dotted paths and the values to try: {optim.lr: {loguniform: [1e-4, 1e-1]}, model.unfreeze: {grid: [0, 1, 2]}}."""
    trials: Annotated[int, Field(ge=1)] | None = None
    """Number of trials; default: every cell of the grid once, 16 where something is drawn."""
    searcher: Literal["random", "tpe"] = "random"
    """How what is not a grid is drawn: at random, or by Optuna's TPE from the trials so far."""
    scheduler: Literal["none", "asha", "pbt"] = "none"
    """none: every trial to its end; asha: pause early, the best go on; pbt: losers copy winners and change."""
    metric: Metric | None = None
    """Validation metric to compare trials by; default: train.metric."""
    mode: Literal["max", "min"] | None = None
    """Whether more or less of it is better; default: what the metric says."""
    seed: int = 0
    """Seed of the draws; every trial trains with train.seed."""
    reduction: Annotated[int, Field(ge=2)] = 3
    """asha: the best one in so many of the trials that come to a rung goes on from it, at least one."""
    grace: Annotated[int, Field(ge=1)] = 1
    """asha, pbt: evaluations before a trial may be paused, stopped or changed."""
    compare: Literal["depth", "seconds"] = "depth"
    """asha: compare trials of one unfreezing depth at equal epochs, or all of them at equal seconds."""
    concurrent: Annotated[int, Field(ge=1)] | None = None
    """Trials at once; default: as many as memory holds, at most 8 per pack, 2 where all is kept in the cache."""
    packs: Annotated[int, Field(ge=1)] | None = None
    """Actors that hold the trials; default: one for each GPU (or core) and train.workers."""
    reuse: Literal["auto", "share", "activations", "pixels"] = "auto"
    """What of an image is kept for its next use; share: nothing, all trials of a pack use it at once; auto: by cost."""
    budget_s: Annotated[float, Field(gt=0)] | None = None
    """Seconds after which the search ends with what it has."""
    budget_gpu_hours: Annotated[float, Field(gt=0)] | None = None
    """GPU hours (core hours without GPUs), summed over packs, after which the search ends with what it has."""
    price_per_hour: Annotated[float, Field(ge=0)] | None = None
    """Price of one GPU (or core) for an hour, in any currency, for the cost of each trial."""
    confirm: tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=0)]] = (3, 3)
    """[best trials, seeds]: train them again under fresh seeds before one is chosen; [0, 0]: choose at once."""
    refit: bool = False
    """Train the chosen configuration on training and validation rows for the steps that the search found."""
