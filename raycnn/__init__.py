"""raycnn: fine-tune pretrained convolutional networks on labelled images at cluster scale, with Ray."""

from raycnn.config import Config, load_config
from raycnn.errors import RaycnnError
from raycnn.verbs import doctor, evaluate, index, load, plan, predict, runs, train

__version__ = "0.1.0"

__all__ = ["Config", "RaycnnError", "doctor", "evaluate", "index", "load", "load_config", "plan", "predict", "runs", "train"]
