"""The settings of training: how long, on how much, and how often it is looked at."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from raycnn.config.base import LATER, OPERATIONAL, Metric, Section


class TrainConfig(Section):
    """How long, on how much, and how often it is looked at."""

    epochs: Annotated[float, Field(gt=0), OPERATIONAL] = 10
    """Passes over the training rows; more epochs extend a run."""
    global_batch: Annotated[int, Field(ge=1)] = 64
    """Rows per step over all workers; a multiple of train.workers."""
    workers: Annotated[int, Field(ge=1), OPERATIONAL] = 1
    """Ranks of data-parallel training, one GPU (or CPU core) each."""
    threads: Annotated[int, Field(ge=1), OPERATIONAL] = 1
    """CPU threads a rank computes with; equal bits need equal threads."""
    chunk: Annotated[int, Field(ge=1)] = 32
    """Rows per pass through the frozen prefix and per evaluation batch; fixed, since bits depend on it."""
    seed: int = 0
    """Seed of initialisation, order and augmentation."""
    exact: bool = False
    """Results do not depend on train.workers to the last bit (on CPUs, at equal train.threads): gradients are summed
    over train.virtual_shards in one fixed tree. Needs model.batchnorm: frozen. `python -m tests.bench exact`
    measures its cost."""
    virtual_shards: Annotated[int, Field(ge=1)] = 4
    """exact: parts of each global batch that are passes of their own; a power of two, a multiple of train.workers, and
    a divisor of global_batch."""
    micro_batch: Annotated[Annotated[int, Field(ge=1)] | Literal["auto"] | None, LATER] = None
    """Rows per pass of what trains, on each worker: gradients of several passes add up to those of the global batch
    (up to rounding). BatchNorm, unless frozen, sees one pass at a time, and dropout is drawn for each. auto: as many as
    there are, and half as many whenever a worker runs out of GPU memory; null: all at once."""
    ema: Annotated[Annotated[float, Field(gt=0, lt=1)] | None, LATER] = None
    """Decay of a running mean of the weights (0.999), which is evaluated, kept and exported in their place; null:
    none."""
    precision: Literal["auto", "float32", "bf16", "fp16"] = "auto"
    """auto: bf16 or fp16 on GPUs that have it, float32 elsewhere."""
    compile: Literal["auto", "none", "prefix", "all"] = "auto"
    """What torch.compile makes kernels for in training: the frozen prefix, or all: also the steps of what trains; auto:
    the prefix on GPUs that Triton knows, nothing elsewhere. Last bits change; evaluate and predict never compile."""
    checkpoint_every: Annotated[int, Field(ge=1), OPERATIONAL] = 200
    """Steps between checkpoints; every evaluation is followed by one too."""
    eval_every: Annotated[float, Field(gt=0)] = 1.0
    """Epochs between evaluations on the validation rows."""
    metric: Metric = "accuracy"
    """Validation metric that chooses the best checkpoint; by default macro_f1 where one class has at least twice the
    rows of another, map for several labels, rmse for numbers."""
    patience: Annotated[int, Field(ge=1), OPERATIONAL] | None = None
    """Stop after so many evaluations without a better train.metric; null: never."""
    min_delta: Annotated[float, Field(ge=0), OPERATIONAL] = 0.0
    """Smallest change of train.metric that counts as better for train.patience."""
    log_every: Annotated[int, Field(ge=1), OPERATIONAL] = 10
    """Steps between lines of metrics.jsonl."""
    reuse: Annotated[Literal["auto", "none", "activations", "pixels", "bytes"], OPERATIONAL] = "auto"
    """What of an image the node's cache keeps for later epochs: what comes out of the frozen part, where every epoch
    sees the same views; decoded pixels, where only flips, erasing and mixing vary; bytes as they were fetched, with any
    views; auto: the first that fits, bytes only from a store."""
    keep: Annotated[int, Field(ge=1), OPERATIONAL] = 2
    """Newest checkpoints kept beside the best one."""
    folds: Annotated[Annotated[int, Field(ge=2, le=100)] | None, LATER] = None
    """Cross-validation: the rows that are train or val make so many folds, by class; each is validated by a network
    that trains on the others. Groups and equal images stay together, the test rows stay aside. null: none."""
    fold: Annotated[Annotated[int, Field(ge=0)] | None, LATER] = None
    """Train this one of train.folds alone, from 0, as an ordinary run; null: all of them."""

    @model_validator(mode="after")
    def _workers_divide(self) -> TrainConfig:
        if self.global_batch % self.workers:
            raise ValueError(f"global_batch {self.global_batch} must be a multiple of workers {self.workers}")
        return self

    @model_validator(mode="after")
    def _shards_divide(self) -> TrainConfig:
        shards = self.virtual_shards
        if not self.exact:
            return self
        if shards & (shards - 1):
            raise ValueError(f"virtual_shards {shards} must be a power of two")
        if shards % self.workers:
            raise ValueError(f"virtual_shards {shards} must be a multiple of workers {self.workers}")
        if self.global_batch % shards:
            raise ValueError(f"global_batch {self.global_batch} must be a multiple of virtual_shards {shards}")
        return self

    @model_validator(mode="after")
    def _one_of_the_folds(self) -> TrainConfig:
        if self.fold is not None and self.fold >= (self.folds or 0):
            raise ValueError(f"fold {self.fold} is none of train.folds, which are counted from 0")
        return self
