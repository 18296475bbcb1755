"""raycnn: fine-tune pretrained convolutional networks on labelled images at cluster scale, with Ray."""

from raycnn.config import Config, load_config
from raycnn.errors import RaycnnError
from raycnn.verbs import (
    choose,
    doctor,
    evaluate,
    features,
    index,
    load,
    lr_find,
    plan,
    predict,
    runs,
    search,
    shift,
    train,
)
from raycnn.version import __version__

__all__ = [
    "Config",
    "RaycnnError",
    "__version__",
    "choose",
    "doctor",
    "evaluate",
    "features",
    "index",
    "load",
    "load_config",
    "lr_find",
    "plan",
    "predict",
    "runs",
    "search",
    "shift",
    "train",
]
