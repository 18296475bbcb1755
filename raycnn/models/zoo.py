"""Networks by name: torchvision/NAME, timm/NAME, reference/NAME, or given as python/NAME@DIGEST."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any, Final

import torch
from torch import nn

from raycnn.config import Given, HeadConfig
from raycnn.config.given import NOTHING, PYTHON
from raycnn.data.transforms import Preprocessing
from raycnn.errors import ConfigError
from raycnn.memory import importing
from raycnn.models import reference
from raycnn.models.given import given_network
from raycnn.models.heads import replace_head

AUXILIARY: Final = {"torchvision/googlenet": ("aux1.", "aux2."), "torchvision/inception_v3": ("AuxLogits.",)}
"""State-dict prefixes of the auxiliary heads, which are never built."""
_LINEAR: Final = HeadConfig()


@dataclass(frozen=True)
class Network:
    """A network and what it expects.

    Args:
        name: as in model.name.
        module: float32 images_NCHW to logits_NK.
        classifier: dotted path of the class layer, or of the layers in its place: what no file's weights fit.
        preprocessing: of its pretrained config, at the image size in use.
    """

    name: str
    module: nn.Module
    classifier: str
    preprocessing: Preprocessing


def build(
    name: str, num_classes: int, *, seed: int, image_size: int | None = None, head: HeadConfig = _LINEAR,
    given: Given = NOTHING,
) -> Network:  # fmt: skip
    """The network with random weights, which depend on `seed` alone; no file or network is touched.

    The class layer has num_classes outputs and torch's default initialisation in every zoo, auxiliary heads are
    left out, and no dropout works in place (a suffix must not write to the prefix's output, which others may
    share). torch's random state stays as it was.

    Args:
        image_size: side of the input, in place of the pretrained config's; the crop fraction stays.
        head: what stands in the place of the class layer.
        given: what goes with the config, for a network that is in no zoo: its layers are initialised as it says.

    Raises:
        ConfigError: an unknown name, timm is not installed, a head that the network cannot have, or nothing given.
        CheckpointError: another network is given.
    """
    view = preprocessing(name, image_size)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        if name.startswith(PYTHON):
            module, classifier = given_network(given, name, num_classes, view.image_size)
        else:
            module = create(name, num_classes)
            classifier = _classifier(name, module, num_classes)
            # some of timm's start so wide that the first loss is several times chance, which the body then pays for
            _as_linear(module.get_submodule(classifier)).reset_parameters()
        classifier = replace_head(module, classifier, head)
    for layer in module.modules():
        if isinstance(layer, nn.modules.dropout._DropoutNd):
            layer.inplace = False
    return Network(name, module, classifier, view)


def preprocessing(name: str, image_size: int | None = None) -> Preprocessing:
    """The preprocessing of the network's default weights, at its native image size or another one.

    Raises:
        ConfigError: an unknown name, timm is not installed, or a given network without a size.
    """
    if name.startswith(PYTHON):
        if image_size is None:
            fix = "set it to the side of the square images that the network takes, in pixels"
            raise ConfigError(f"{name} has no image size of its own", where="data.image_size", fix=fix)
        return Preprocessing(image_size, 1.0, "bilinear", (0.5,) * 3, (0.5,) * 3)
    native = _native(name)
    return native if image_size is None else replace(native, image_size=image_size)


def native_size(network: Network) -> int:
    """The image size that a network is traced at, so that its stages do not depend on the one in use."""
    given = network.name.startswith(PYTHON)
    return network.preprocessing.image_size if given else _native(network.name).image_size


def _native(name: str) -> Preprocessing:
    zoo, short = _known(name)
    if zoo == "reference":
        return reference.NETWORKS[short].preprocessing
    if zoo == "torchvision":
        view = _torchvision().get_model_weights(short).DEFAULT.transforms()
        size, resized = view.crop_size[0], view.resize_size[0]
        return Preprocessing(size, size / resized, view.interpolation.value, tuple(view.mean), tuple(view.std))
    config = _timm().get_pretrained_cfg(short)
    size = config.input_size[-1]
    return Preprocessing(size, config.crop_pct, config.interpolation, tuple(config.mean), tuple(config.std))


def create(name: str, num_classes: int | None = None, *, pretrained: bool = False) -> nn.Module:
    """The zoo's own module, with its own number of classes unless told otherwise.

    Args:
        pretrained: with the zoo's default weights, downloaded where they are not cached; errors are the zoo's.
    """
    zoo, short = _known(name)
    options: dict[str, Any] = {} if num_classes is None else {"num_classes": num_classes}
    if zoo == "reference":
        return reference.NETWORKS[short].build(**options)
    if zoo == "timm":
        return _as_module(_timm().create_model(short, pretrained=pretrained, **options))
    if name in AUXILIARY:
        # transform_input goes from ImageNet's mean and std to the ones that these two were trained with
        options |= {"aux_logits": False, "transform_input": True}
        options |= {} if pretrained else {"init_weights": True}
    weights = "DEFAULT" if pretrained else None
    return _as_module(_torchvision().get_model(short, weights=weights, **options))


def names(zoo: str) -> list[str]:
    """All names of one zoo (torchvision, timm or reference), without the zoo."""
    if zoo == "torchvision":
        return list(_torchvision().list_models(module=_torchvision()))
    return list(_timm().list_models()) if zoo == "timm" else list(reference.NETWORKS)


def _known(name: str) -> tuple[str, str]:
    """(zoo, name in it) of a network that exists; ConfigError otherwise."""
    zoo, _, short = name.partition("/")
    if zoo not in ("torchvision", "timm", "reference") or not short:
        fix = "give torchvision/NAME, timm/NAME or reference/NAME"
        raise ConfigError(f"unknown network {name!r}", where="model.name", fix=fix)
    if zoo == "timm" and "." in short:
        tags = list(_timm().list_pretrained(short.partition(".")[0] + ".*"))
        if short not in tags:
            raise _unknown(name, zoo, tags or names(zoo))
    elif short not in names(zoo):
        raise _unknown(name, zoo, names(zoo))
    return zoo, short


def _unknown(name: str, zoo: str, known: Iterable[str]) -> ConfigError:
    close = difflib.get_close_matches(name.partition("/")[2].lower(), known, n=3, cutoff=0.5)
    meant = " or ".join(f"{zoo}/{other}" for other in close)
    fix = f"did you mean {meant}?" if close else f"see the documentation of {zoo} for its names"
    return ConfigError(f"unknown network {name!r}", where="model.name", fix=fix)


def _torchvision() -> ModuleType:
    with importing():  # as long as all else that a worker imports
        models: ModuleType = importlib.import_module("torchvision.models")
    return models


def _timm() -> ModuleType:
    try:
        with importing():
            import timm
            import timm.models
    except ImportError:
        fix = "pip install 'raycnn[timm]'"
        raise ConfigError("timm is not installed", where="model.name", fix=fix) from None
    return timm.models


def _classifier(network: str, module: nn.Module, num_classes: int) -> str:
    """Path of the class layer: timm names it; elsewhere it is the last layer of that width."""
    if network.startswith("timm/"):
        config: Any = module.pretrained_cfg
        path: Any = config["classifier"]
        if isinstance(path, str) and path in dict(module.named_modules()):
            return path
        raise ConfigError(f"{network} does not have one class layer", where="model.name", fix="use another network")
    wide: list[str] = [name for name, layer in module.named_modules() if _width(layer) == num_classes]
    return wide[-1]


def _width(layer: nn.Module) -> int | None:
    if isinstance(layer, nn.Linear):
        return layer.out_features
    return layer.out_channels if isinstance(layer, nn.Conv2d) else None


def _as_linear(layer: nn.Module) -> nn.Linear | nn.Conv2d:
    assert isinstance(layer, nn.Linear | nn.Conv2d)
    return layer


def _as_module(module: object) -> nn.Module:
    assert isinstance(module, nn.Module)
    return module
