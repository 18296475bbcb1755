"""The config: frozen models that YAML, command-line flags and search samples address by dotted path."""

from raycnn.config.augment import AugmentConfig
from raycnn.config.base import LATER, OPERATIONAL, Section
from raycnn.config.given import Given
from raycnn.config.loading import dated, load_config
from raycnn.config.looks import Candidate, ChooseConfig, FeaturesConfig, ShiftConfig
from raycnn.config.model import Depth, HeadConfig, ModelConfig, Phase
from raycnn.config.optim import DistillConfig, LossConfig, OptimConfig
from raycnn.config.paths import fields, get_path, hashed, identity, identity_hash, operational, set_path
from raycnn.config.search import Distribution, SearchConfig
from raycnn.config.sections import (
    CacheConfig,
    Config,
    DataConfig,
    EvaluateConfig,
    LrFindConfig,
    PredictConfig,
    RunConfig,
    ShardsConfig,
)
from raycnn.config.train import TrainConfig

__all__ = [
    "LATER",
    "OPERATIONAL",
    "AugmentConfig",
    "CacheConfig",
    "Candidate",
    "ChooseConfig",
    "Config",
    "DataConfig",
    "Depth",
    "DistillConfig",
    "Distribution",
    "EvaluateConfig",
    "FeaturesConfig",
    "Given",
    "HeadConfig",
    "LossConfig",
    "LrFindConfig",
    "ModelConfig",
    "OptimConfig",
    "Phase",
    "PredictConfig",
    "RunConfig",
    "SearchConfig",
    "Section",
    "ShardsConfig",
    "ShiftConfig",
    "TrainConfig",
    "dated",
    "fields",
    "get_path",
    "hashed",
    "identity",
    "identity_hash",
    "load_config",
    "operational",
    "set_path",
]
