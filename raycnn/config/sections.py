"""The settings of a run, section by section.

Every field's docstring is its help text. A field marked `OPERATIONAL` may change between starts of one run; all
others decide the result and make the run's identity.
"""

from __future__ import annotations

import os
from typing import Annotated, Literal

from pydantic import Field, PrivateAttr, field_validator, model_validator

from raycnn.config.augment import AugmentConfig
from raycnn.config.base import LATER, OPERATIONAL, Fraction, Prior, Section, Tta
from raycnn.config.given import Given
from raycnn.config.looks import ChooseConfig, FeaturesConfig, ShiftConfig
from raycnn.config.model import ModelConfig
from raycnn.config.optim import LossConfig, OptimConfig
from raycnn.config.search import SearchConfig
from raycnn.config.train import TrainConfig
from raycnn.errors import ConfigError

_Spread = Annotated[float, Field(gt=0)]


class RunConfig(Section):
    """Which run, and where it lives."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9]([A-Za-z0-9._-]|%[A-Za-z]){0,79}$"), OPERATIONAL]
    """Name of the run, a folder below run.storage; the same name continues the same run. nightly-%Y-%m-%d: with the
    date (UTC); a search then tries the best settings of the one before first, and is compared with it."""
    storage: Annotated[str, Field(min_length=1), OPERATIONAL]
    """s3://bucket/prefix or a directory: checkpoints, indexes and results go there."""

    @field_validator("storage")
    @classmethod
    def _absolute(cls, storage: str) -> str:
        """Workers have working directories of their own."""
        return storage if "//" in storage else os.path.abspath(os.path.expanduser(storage))


class DataConfig(Section):
    """Which images, and how they are split and read."""

    source: Annotated[str, Field(min_length=1), OPERATIONAL]
    """A tree of class folders (optionally below train/ val/ test/), tar shards, Parquet files with the images inside,
    or a .csv or .parquet manifest with the columns key, label[, split][, group]; in object storage or on disk."""
    task: Annotated[Literal["auto", "single-label", "binary", "multi-label", "regression"], LATER] = "auto"
    """What is asked of an image: which of the classes (a logit for each), which of two (a single logit), each of the
    classes or not, or a number; auto: by the labels, a class each, lists of classes, or numbers with a point."""
    val_fraction: Fraction = 0.1
    """Share of the images for validation, where the source has no split of its own. 0: none; then the last checkpoint
    counts as the best."""
    test_fraction: Fraction = 0.1
    """Share of the images for the final test, where the source has no split of its own."""
    split_seed: int = 0
    """Seed of the split."""
    stratify: bool = False
    """Split within each class, so that every class has its share (adding images then may move a few)."""
    resample: Annotated[Literal["none", "balanced", "sqrt"], LATER] = "none"
    """How often training sees each class: none: as often as it has rows; balanced: all equally often; sqrt: by the
    square root of its rows. An epoch is as long as without; the rows of a class come in turn."""
    neighbours: Annotated[int, Field(ge=1, le=64), LATER] = 1
    """Images that lie one after the other in a shard and are read at once, into one batch; 1: any order of all images
    is equally likely. 8 makes reading from shards cheap; where their images are sorted by class, batches are too."""
    image_size: Annotated[int, Field(ge=8, le=4096)] | None = None
    """Side of the network's square input in pixels; default: the size of its pretrained config."""
    mean: Annotated[tuple[float, float, float] | None, LATER] = None
    """What is taken from red, green and blue, in shares of 255, before the network sees them; default: that of its
    pretrained config, 0.5 without one."""
    std: Annotated[tuple[_Spread, _Spread, _Spread] | None, LATER] = None
    """What the rest is then divided by; default: as that of data.mean."""
    bad_image_budget: Fraction = 0.01
    """Share of the images that may be unreadable before the run ends with code 3."""
    max_pixels: Annotated[int, Field(gt=0)] = 50_000_000
    """Images with more pixels than this are quarantined from their header alone, and those that take more than 5 bytes
    for each of them to decode."""
    max_bytes: Annotated[int, Field(gt=0)] = 20_000_000
    """Images with more bytes than this are quarantined unread."""
    block_steps: Annotated[int, Field(ge=1, le=1024), OPERATIONAL] | None = None
    """Steps whose images one decoding task reads at once; default: about 256 images."""
    fetch_threads: Annotated[int, Field(ge=1, le=256), OPERATIONAL] | None = None
    """Objects that one decoding task reads from the store at the same time; default: 16, or 2 of a directory, whose
    disk answers sooner than threads take turns."""

    @model_validator(mode="after")
    def _whole_groups(self) -> DataConfig:
        if self.neighbours > 1 and self.resample != "none":
            raise ValueError("neighbours reads what lies together, resample what is of one class: use one of them")
        return self

    @model_validator(mode="after")
    def _leave_some_to_train_on(self) -> DataConfig:
        if self.val_fraction + self.test_fraction >= 1:
            raise ValueError("val_fraction + test_fraction must leave rows to train on (sum below 1)")
        return self


class EvaluateConfig(Section):
    """What `raycnn evaluate` looks at."""

    split: Annotated[Literal["train", "val", "test"], OPERATIONAL] = "test"
    """Rows to evaluate."""
    thresholds: Annotated[Literal["f1", "balanced_accuracy", "none"], OPERATIONAL] = "f1"
    """What the probabilities above which a class is there are chosen by (binary, multi-label), on the validation rows
    at each evaluation in training; none: 0.5. They and a temperature are kept with the checkpoint."""
    step: Annotated[int, Field(ge=0), OPERATIONAL] | Literal["best", "latest"] = "best"
    """Checkpoint: a step, best or latest."""
    tta: Tta = "none"
    """Views of each image whose mean probabilities count. hflip: it and its mirror image; flips: also upside down, four
    in all; crops: the four corners and the centre of a somewhat larger square; crops_hflip: their mirror images too."""
    prior: Prior = "trained"
    """Shares of the classes that probabilities are to hold for. trained: as training saw them, see data.resample,
    loss.class_weights and loss.logit_adjustment; rows: as in the training rows; uniform: all equal; estimated: from
    the images that are evaluated, without their labels (Saerens et al., 2002)."""


class PredictConfig(Section):
    """What `raycnn predict` reads and writes."""

    source: Annotated[str, OPERATIONAL] | None = None
    """Images to predict: a folder or bucket prefix, or a manifest with a column key; default: the test split."""
    output: Annotated[str, OPERATIONAL] | None = None
    """Parquet file to write; default: predictions/ of the run."""
    step: Annotated[int, Field(ge=0), OPERATIONAL] | Literal["best", "latest"] = "best"
    """Checkpoint: a step, best or latest."""
    tta: Tta = "none"
    """Views of each image, see evaluate.tta."""
    prior: Literal["trained", "rows", "uniform"] = "trained"
    """Shares of the classes, see evaluate.prior."""


class LrFindConfig(Section):
    """What `raycnn lr-find` tries."""

    low: Annotated[float, Field(gt=0)] = 1e-6
    """First learning rate."""
    high: Annotated[float, Field(gt=0)] = 10.0
    """Last one, unless the loss runs away before."""
    steps: Annotated[int, Field(ge=20)] = 100
    """Steps from the one to the other."""

    @model_validator(mode="after")
    def _rising(self) -> LrFindConfig:
        if self.low >= self.high:
            raise ValueError("low must be below high")
        return self


class CacheConfig(Section):
    """What each node keeps of images, one cache for all of its processes and runs."""

    folder: str | None = None
    """Where; default: below the system's temporary folder."""
    max_bytes: Annotated[int, Field(ge=0)] = 8 << 30
    """Bytes that each node keeps at most; the least recently used goes first."""
    upload: bool = False
    """search: keep it below run.storage too, for other nodes and for the next search on new machines."""


class ShardsConfig(Section):
    """What `index --shard` writes: the same images again, many to a file, ready for fast reading."""

    folder: str | None = None
    """Where to, s3://bucket/prefix or a directory; default: run.storage/shards/ and a name of what is written."""
    shard_bytes: Annotated[int, Field(ge=1 << 20, le=1 << 30)] = 96_000_000
    """Size of one tar file, about."""
    short_side: Annotated[int, Field(ge=32)] = 256
    """Larger images are made smaller, to this many pixels on their short side."""
    quality: Annotated[int, Field(ge=1, le=100)] = 90
    """Of the JPEGs."""
    keep_bytes: bool = False
    """Pack the files as they are, whatever their format and size."""


class Config(Section):
    """A whole run."""

    run: RunConfig
    data: DataConfig
    model: ModelConfig
    augment: AugmentConfig = AugmentConfig()
    optim: OptimConfig = OptimConfig()
    loss: LossConfig = LossConfig()
    train: TrainConfig = TrainConfig()
    evaluate: Annotated[EvaluateConfig, OPERATIONAL] = EvaluateConfig()
    predict: Annotated[PredictConfig, OPERATIONAL] = PredictConfig()
    search: Annotated[SearchConfig, OPERATIONAL] = SearchConfig()
    shards: Annotated[ShardsConfig, OPERATIONAL] = ShardsConfig()
    cache: Annotated[CacheConfig, OPERATIONAL] = CacheConfig()
    lr_find: Annotated[LrFindConfig, OPERATIONAL] = LrFindConfig()
    features: Annotated[FeaturesConfig, OPERATIONAL] = FeaturesConfig()
    choose: Annotated[ChooseConfig, OPERATIONAL] = ChooseConfig()
    shift: Annotated[ShiftConfig, OPERATIONAL] = ShiftConfig()
    _given: Given = PrivateAttr(default=Given())

    @property
    def given(self) -> Given:
        """What a caller from Python gave with it."""
        return self._given

    def with_given(self, given: Given) -> Config:
        """The same config with something else given."""
        config = self.model_copy()
        config._given = given
        return config

    @model_validator(mode="after")
    def _passes_apart(self) -> Config:
        if self.train.micro_batch == "auto" and self.model.batchnorm == "sync":
            fix = "use model.batchnorm: frozen or local, or give the number of rows"
            raise ConfigError("sync ties the passes of all workers together", where="train.micro_batch", fix=fix)
        return self

    @property
    def apart(self) -> int:
        """Places of a batch between two that are mixed: a power of two, so many that they do not lie together."""
        return 1 << (self.data.neighbours - 1).bit_length()

    @model_validator(mode="after")
    def _whole_pairs(self) -> Config:
        batch, workers, views = self.train.global_batch, self.train.workers, self.augment.views
        if self.augment.mixes and batch // workers % (2 * self.apart):
            needed = f"a multiple of {2 * self.apart}"
            fix = f"choose train.global_batch and train.workers so that every worker has {needed} rows a step"
            raise ConfigError("images are mixed in pairs", where="augment.mixup, augment.cutmix", fix=fix)
        if batch % views:
            raise ConfigError(f"{batch} is not a multiple of it", where="augment.views", fix="see train.global_batch")
        return self

    @model_validator(mode="after")
    def _exact_statistics(self) -> Config:
        if self.train.exact and self.model.batchnorm != "frozen":
            fix = "use model.batchnorm: frozen, or leave train.exact out"
            raise ConfigError("statistics of batches depend on the number of workers", where="train.exact", fix=fix)
        return self
