"""The config: frozen models that YAML, command-line flags and search samples address by dotted path.

Every field's docstring is its help text. A field marked `OPERATIONAL` may change between starts of one run; all
others decide the result and make the run's identity.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.fields import FieldInfo

from raycnn.errors import ConfigError

OPERATIONAL: Final = "operational"
"""Marks a field that does not change results: where, how fast, how often, how long."""

Fraction = Annotated[float, Field(ge=0, lt=1)]


class Section(BaseModel):
    """Base of all sections: immutable, no unknown fields, finite numbers only."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        allow_inf_nan=False,
        protected_namespaces=(),
    )


class RunConfig(Section):
    """Which run, and where it lives."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,79}$"), OPERATIONAL]
    """Name of the run, a folder below run.storage; the same name continues the same run."""
    storage: Annotated[str, Field(min_length=1), OPERATIONAL]
    """s3://bucket/prefix or a directory: checkpoints, indexes and results go there."""


class DataConfig(Section):
    """Which images, and how they are split and read."""

    source: Annotated[str, Field(min_length=1), OPERATIONAL]
    """A tree of class folders (optionally below train/ val/ test/), or a .csv or .parquet manifest with the columns
    key, label[, split][, group]; in object storage or on disk."""
    val_fraction: Fraction = 0.1
    """Share of the images for validation, where the source has no split of its own."""
    test_fraction: Fraction = 0.1
    """Share of the images for the final test, where the source has no split of its own."""
    split_seed: int = 0
    """Seed of the split."""
    stratify: bool = False
    """Split within each class, so that every class has its share (adding images then may move a few)."""
    image_size: Annotated[int, Field(ge=8, le=4096)] | None = None
    """Side of the network's square input in pixels; default: the size of its pretrained config."""
    bad_image_budget: Fraction = 0.01
    """Share of the images that may be unreadable before the run ends with code 3."""
    max_pixels: Annotated[int, Field(gt=0)] = 50_000_000
    """Images with more pixels than this are quarantined from their header alone."""
    max_bytes: Annotated[int, Field(gt=0)] = 20_000_000
    """Images with more bytes than this are quarantined unread."""
    block_steps: Annotated[int, Field(ge=1, le=1024), OPERATIONAL] | None = None
    """Steps whose images one decoding task reads at once; default: about 256 images."""
    fetch_threads: Annotated[int, Field(ge=1, le=256), OPERATIONAL] = 16
    """Objects that one decoding task reads from the store at the same time."""

    @model_validator(mode="after")
    def _leave_some_to_train_on(self) -> DataConfig:
        if self.val_fraction + self.test_fraction >= 1:
            raise ValueError("val_fraction + test_fraction must leave rows to train on (sum below 1)")
        return self


class AugmentConfig(Section):
    """Random views of the training images, keyed by (seed, epoch, image)."""

    crop_scale: tuple[Annotated[float, Field(gt=0, le=1)], Annotated[float, Field(gt=0, le=1)]] | None = (
        0.35,
        1.0,
    )
    """Share of the image's area that a random resized crop keeps, [low, high]; null: the evaluation crop."""
    crop_ratio: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]] = (0.75, 4 / 3)
    """Aspect ratio (width / height) of the random crop, [low, high]."""
    hflip: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Probability of mirroring left to right."""
    vflip: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Probability of mirroring top to bottom."""

    @model_validator(mode="after")
    def _ordered(self) -> AugmentConfig:
        for name, pair in (("crop_scale", self.crop_scale), ("crop_ratio", self.crop_ratio)):
            if pair is not None and pair[0] > pair[1]:
                raise ValueError(f"{name} must be [low, high] with low <= high")
        return self


class Phase(Section):
    """Some epochs at one unfreezing depth."""

    depth: Annotated[int, Field(ge=0)] | Literal["all"]
    """Number of stages, counted from the head, that train beside it."""
    epochs: Annotated[float, Field(gt=0)]
    """Length of the phase; the last phase goes on to the end of the run."""


class ModelConfig(Section):
    """Which network, from which weights, and how much of it trains."""

    name: Annotated[str, Field(pattern=r"^(torchvision|timm|reference)/[A-Za-z0-9_.\-]+$")]
    """torchvision/NAME, timm/NAME or reference/NAME."""
    weights: str = "default"
    """none | default (the zoo's own) | a file or s3:// path (.safetensors or .pth) | run:NAME."""
    weights_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    """Refuse a weight file with another digest."""
    unfreeze: Annotated[int, Field(ge=0)] | Literal["all"] | tuple[Phase, ...] = "all"
    """Stages that train beside the head: a number, `all`, or a list of phases {depth, epochs}."""
    batchnorm: Literal["frozen", "local", "sync"] = "frozen"
    """Statistics of the BatchNorm layers that train: frozen at the pretrained ones, per rank, or over all ranks."""

    @model_validator(mode="after")
    def _some_phase(self) -> ModelConfig:
        if self.unfreeze == ():
            raise ValueError("unfreeze: a list of phases needs at least one")
        return self


class OptimConfig(Section):
    """The optimizer and its schedule."""

    name: Literal["sgd", "adamw"] = "adamw"
    """Optimizer."""
    lr: Annotated[float, Field(gt=0)] = 1e-3
    """Peak learning rate."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """Decay of the weights; norms and biases are left out."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Momentum of sgd, first beta of adamw."""
    nesterov: bool = False
    """Nesterov momentum (sgd)."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """Learning rate after the warmup, over the whole of train.epochs."""
    warmup_epochs: Annotated[float, Field(ge=0)] = 0.0
    """Linear warmup from zero."""
    clip_norm: Annotated[float, Field(gt=0)] | None = None
    """Largest global norm of the gradient."""

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> OptimConfig:
        if self.nesterov and (self.name != "sgd" or self.momentum == 0):
            raise ValueError("nesterov needs name: sgd and a momentum above 0")
        return self


class LossConfig(Section):
    """The loss: cross entropy."""

    label_smoothing: Fraction = 0.0
    """Probability mass spread over all classes."""
    class_weights: Literal["none", "balanced"] = "none"
    """balanced: weight each class by the inverse of its share of the training rows."""


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
    precision: Literal["auto", "float32", "bf16", "fp16"] = "auto"
    """auto: bf16 or fp16 on GPUs that have it, float32 elsewhere."""
    checkpoint_every: Annotated[int, Field(ge=1), OPERATIONAL] = 200
    """Steps between checkpoints; every evaluation is followed by one too."""
    eval_every: Annotated[float, Field(gt=0)] = 1.0
    """Epochs between evaluations on the validation rows."""
    metric: Literal["accuracy", "balanced_accuracy", "macro_f1", "auroc", "loss"] = "accuracy"
    """Validation metric that chooses the best checkpoint."""
    patience: Annotated[int, Field(ge=1), OPERATIONAL] | None = None
    """Stop after so many evaluations without a better train.metric; null: never."""
    min_delta: Annotated[float, Field(ge=0), OPERATIONAL] = 0.0
    """Smallest change of train.metric that counts as better for train.patience."""
    log_every: Annotated[int, Field(ge=1), OPERATIONAL] = 10
    """Steps between lines of metrics.jsonl."""
    keep: Annotated[int, Field(ge=1), OPERATIONAL] = 2
    """Newest checkpoints kept beside the best one."""

    @model_validator(mode="after")
    def _workers_divide(self) -> TrainConfig:
        if self.global_batch % self.workers:
            raise ValueError(f"global_batch {self.global_batch} must be a multiple of workers {self.workers}")
        return self


class EvaluateConfig(Section):
    """What `raycnn evaluate` looks at."""

    split: Annotated[Literal["train", "val", "test"], OPERATIONAL] = "test"
    """Rows to evaluate."""
    step: Annotated[int, Field(ge=0), OPERATIONAL] | Literal["best", "latest"] = "best"
    """Checkpoint: a step, best or latest."""


class PredictConfig(Section):
    """What `raycnn predict` reads and writes."""

    source: Annotated[str, OPERATIONAL] | None = None
    """Images to predict: a folder or bucket prefix, or a manifest with a column key; default: the test split."""
    output: Annotated[str, OPERATIONAL] | None = None
    """Parquet file to write; default: predictions/ of the run."""
    step: Annotated[int, Field(ge=0), OPERATIONAL] | Literal["best", "latest"] = "best"
    """Checkpoint: a step, best or latest."""


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


def fields(model: type[BaseModel] = Config, prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """All settings as (dotted path, field), depth first."""
    for name, info in model.model_fields.items():
        path = prefix + name
        if isinstance(info.annotation, type) and issubclass(info.annotation, Section):
            yield from fields(info.annotation, path + ".")
        else:
            yield path, info


def load_config(source: str | Path | dict[str, Any] | Config, overrides: dict[str, Any] | None = None) -> Config:
    """The config of a YAML file (or mapping), with `overrides` by dotted path laid over it.

    Raises:
        ConfigError: a file that cannot be read, an unknown field, a value its field refuses; the path is named.
    """
    if isinstance(source, Config):
        tree = source.model_dump(mode="json", exclude_unset=True)
    else:
        tree = json.loads(json.dumps(source)) if isinstance(source, dict) else _read_yaml(Path(source))
    for path, value in (overrides or {}).items():
        set_path(tree, path, value)
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise _as_config_error(error) from None


def set_path(tree: dict[str, Any], path: str, value: Any) -> None:
    """Set `value` at the dotted `path` of a nested mapping, in place."""
    *parents, leaf = path.split(".")
    for name in parents:
        child = tree.setdefault(name, {})
        if not isinstance(child, dict):
            raise ConfigError("not a section", where=path, fix=f"{name} holds a value, not fields")
        tree = child
    tree[leaf] = value


def get_path(config: Config, path: str) -> Any:
    """The value at a dotted path."""
    value: Any = config
    for name in path.split("."):
        value = getattr(value, name)
    return value


def identity(config: Config) -> dict[str, Any]:
    """The settings that decide the result, by dotted path, as JSON values."""
    tree = config.model_dump(mode="json")
    kept: dict[str, Any] = {}
    for path, info in fields():
        if not _operational(path, info):
            value: Any = tree
            for name in path.split("."):
                value = value[name]
            kept[path] = value
    return kept


def identity_hash(config: Config) -> str:
    """Hex sha256 over `identity(config)`: equal for two configs that must give the same result on the same manifest."""
    return hashlib.sha256(json.dumps(identity(config), sort_keys=True).encode()).hexdigest()


def _operational(path: str, info: FieldInfo) -> bool:
    section = Config.model_fields[path.split(".")[0]]
    return OPERATIONAL in section.metadata or OPERATIONAL in _metadata(info)


def _metadata(info: FieldInfo) -> list[Any]:
    # `Annotated[int, OPERATIONAL] | None` keeps its mark on the member of the union
    found = list(info.metadata)
    stack = [info.annotation]
    while stack:
        hint: Any = stack.pop()
        found += getattr(hint, "__metadata__", ())
        stack += getattr(hint, "__args__", ())
    return found


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(path.read_text())
    except OSError as error:
        fix = "give the path of a YAML config"
        raise ConfigError(f"cannot read the config: {error.strerror}", where=str(path), fix=fix) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError("not valid YAML", where=str(path), fix=str(error)) from None
    if not isinstance(tree, dict):
        raise ConfigError("the config is not a mapping of sections", where=str(path), fix="see README, Config")
    return tree


def _as_config_error(error: ValidationError) -> ConfigError:
    errors = error.errors()
    # of a union every member complains; the one that got deepest into the value is the one that was meant
    first = max((each for each in errors if each["loc"][:2] == errors[0]["loc"][:2]), key=lambda each: len(each["loc"]))
    section, field, *inside = (*first["loc"], "", "")
    path = ".".join(filter(None, (str(section), str(field))))
    numbers = "".join(f"[{part}]" for part in inside if isinstance(part, int))
    more = len({each["loc"][:2] for each in errors}) - 1
    what, fix = "invalid value", first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        what, fix = "unknown field", "remove it or correct its name"
    elif first["type"] == "missing" and not inside[:-2]:
        what, fix = "missing field", "set it in the config or as a flag"
    return ConfigError(what + (f" (and {more} more)" if more > 0 else ""), where=path + numbers, fix=fix)
