"""Networks and losses that a caller from Python gives: their names, and the network made anew where it is needed."""

from __future__ import annotations

import copy
import hashlib
import re
import secrets
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from raycnn.config import Config, Given, load_config
from raycnn.config.given import PYTHON
from raycnn.errors import ConfigError

_DIGITS: Final = 12


def with_given(source: Config | dict[str, Any] | str | Path, model: Any, loss: Any) -> Config:
    """The config of a run whose network or loss is given: its model.name or loss.name is theirs.

    Args:
        source: as of `load_config`.
        model: number of outputs -> module, or a module, whose weights are then what training starts from; or None.
        loss: (logits_NK, targets) -> loss of each row, float[N]; or None.

    Raises:
        ConfigError: one of them cannot be used.
    """
    given = given_of(model, loss)
    names = {"model.name": given.name} if model is not None else {}
    names |= {"loss.name": PYTHON + _word(loss)} if loss is not None else {}
    config = load_config(source, names, given)
    if isinstance(model, nn.Module) and config.model.weights == "none":
        fix = "leave model.weights out, or give the class"
        raise ConfigError("a module that is given brings its weights", where="model.weights: none", fix=fix)
    return config


def given_of(model: Any, loss: Any = None) -> Given:
    """What is given, as it goes with a config.

    Raises:
        ConfigError: it cannot be made, or not be pickled, by which it reaches the workers.
    """
    from ray import cloudpickle

    if isinstance(model, nn.Module):
        model = copy.deepcopy(model).cpu()  # what the caller does to it meanwhile is not the run's
    for where, thing in (("model", model), ("loss", loss)):
        try:
            cloudpickle.dumps(thing)  # type: ignore[no-untyped-call]
        except Exception as error:  # of any type, as objects say for themselves how they are pickled
            fix = "leave out what cannot be (open files, locks), or give a function that makes it"
            what = f"{_word(thing)} cannot be pickled, by which it reaches the workers: {error}"
            raise ConfigError(what, where=where, fix=fix) from None
    name = "" if model is None else f"{PYTHON}{_word(model)}@{_digest(model)}"
    return Given(model, name, loss, secrets.token_hex(8))


def given_network(given: Given, name: str, num_outputs: int, image_size: int) -> tuple[nn.Module, str]:
    """The given network with so many outputs, and the path of its class layer.

    That is the last linear layer or convolution that runs; where it has another width a new one takes its place.

    Raises:
        ConfigError: no such network is given, or it cannot be used on images of this size.
        CheckpointError: another one is given.
    """
    given.require(name)
    module = _made(given.model, num_outputs).cpu()
    outputs, path = _run(module, name, image_size)
    layer: Any = module.get_submodule(path)
    if outputs.shape[1:] == layer.weight.shape[:1] != (num_outputs,):
        module.set_submodule(path, _wide(layer, num_outputs))
        outputs, path = _run(module, name, image_size)
    if outputs.shape != (2, num_outputs):
        what = f"{name} gives {list(outputs.shape)} for 2 images, and 2 x {num_outputs} logits are needed"
        raise ConfigError(what, where="model", fix="let its last layer, a Linear or Conv2d, give them")
    return module.train(), path


def _word(thing: Any) -> str:
    """Its own name, or its type's, in letters that a path may have."""
    thing = thing.func if isinstance(thing, partial) else thing
    return re.sub(r"[^\w.\-]", "", getattr(thing, "__qualname__", type(thing).__qualname__), flags=re.ASCII) or "_"


def _digest(model: Any) -> str:
    """Of names, shapes and types in its state dict, for two outputs where it is a function of their number."""
    with torch.random.fork_rng(devices=[]):
        state = _made(model, 2).state_dict()
    if strange := [name for name, tensor in state.items() if not isinstance(tensor, Tensor)]:
        what = f"the state dict of {_word(model)} holds other than tensors: {', '.join(strange)}"
        raise ConfigError(what, where="model", fix="register tensors alone")
    told = [(name, tuple(tensor.shape), str(tensor.dtype)) for name, tensor in state.items()]
    return hashlib.sha256(repr(told).encode()).hexdigest()[:_DIGITS]


def _made(model: Any, num_outputs: int) -> nn.Module:
    if isinstance(model, nn.Module):
        return copy.deepcopy(model)
    try:
        module = model(num_outputs)
    except Exception as error:  # whatever the caller's code raises
        fix = "give a function, or a class, of the number of outputs"
        what = f"{_word(model)}({num_outputs}) fails: {type(error).__name__}: {error}"
        raise ConfigError(what, where="model", fix=fix) from error
    if not isinstance(module, nn.Module):
        what = f"{_word(model)}({num_outputs}) is a {type(module).__name__}"
        raise ConfigError(what, where="model", fix="let it give a torch.nn.Module")
    return module


@torch.no_grad()
def _run(module: nn.Module, name: str, image_size: int) -> tuple[Tensor, str]:
    """What two black images give, and the last layer that could be a class layer."""
    ran: list[str] = []
    layers = {path: each for path, each in module.named_modules() if isinstance(each, nn.Linear | nn.Conv2d)}
    hooks = [each.register_forward_hook(lambda *_, path=path: ran.append(path)) for path, each in layers.items()]
    try:
        outputs = module.eval()(torch.zeros(2, 3, image_size, image_size))
    except Exception as error:  # whatever the caller's code raises
        what = f"{name} fails on images of {image_size} pixels: {type(error).__name__}: {error}"
        raise ConfigError(what, where="model", fix="see data.image_size") from error
    finally:
        for hook in hooks:
            hook.remove()
    if not isinstance(outputs, Tensor):
        what = f"{name} gives a {type(outputs).__name__}"
        raise ConfigError(what, where="model", fix="let it give one tensor of logits")
    if not ran:
        what = f"{name} has no class layer"
        raise ConfigError(what, where="model", fix="let its last layer be a torch.nn.Linear or Conv2d")
    return outputs, ran[-1]


def _wide(layer: Any, num_outputs: int) -> nn.Module:
    """A new layer of its kind."""
    bias = layer.bias is not None
    if isinstance(layer, nn.Linear):
        return nn.Linear(layer.in_features, num_outputs, bias)
    shape = (layer.kernel_size, layer.stride, layer.padding, layer.dilation)
    return nn.Conv2d(layer.in_channels, num_outputs, *shape, bias=bias, padding_mode=layer.padding_mode)
