"""Pretrained weights into a network: the zoo's own, a file's, or another run's."""

from __future__ import annotations

import contextlib
import hashlib
import re
import sys
from collections.abc import Callable, Mapping
from typing import Any, Final

import safetensors.torch
import torch
from torch import Tensor, nn

from raycnn.config.given import PYTHON
from raycnn.errors import CheckpointError, ConfigError, StorageError
from raycnn.models.plain import load_plain
from raycnn.models.zoo import AUXILIARY, Network, create

_CONTAINERS: Final = ("state_dict", "model", "model_state_dict", "state_dict_ema", "model_ema")
_PREFIXES: Final = ("module.", "model.", "_orig_mod.")
_NUM_LISTED: Final = 10


def load_pretrained(network: Network, weights: str, *, sha256: str | None, read: Callable[[str], bytes]) -> str:
    """Load weights into the network, in place, all but its last class layer.

    That one stays as it was built, except when another run's has the same number of classes.

    Args:
        weights: none, default (the zoo's own, downloaded where they are not cached, or those that a given network comes
            with), or what `read` understands.
        sha256: hex digest that the bytes must have.
        read: the bytes of a safetensors file or of a torch state dict.

    Returns:
        One line for the log that says which weights the network starts from.

    Raises:
        ConfigError: default of a network that has none, or a sha256 for weights that are no file.
        StorageError: the download failed; or whatever `read` raises.
        CheckpointError: another digest, an unreadable file, tensors that do not match, or NaN, which are listed.
    """
    if weights in ("none", "default") and sha256 is not None:
        fix = "give the path of a weight file in model.weights"
        raise ConfigError(f"weights: {weights} has no file to check", where="model.weights_sha256", fix=fix)
    if weights == "none":
        return f"{network.name}: random weights"
    if weights == "default" and network.name.startswith(PYTHON):
        _refuse_wild(network.module, network.name)
        return f"{network.name}: the weights that it comes with"
    if weights == "default":
        state, source = _zoo_state(network.name), "the zoo's default weights"
    else:
        data = read(weights)
        digest = hashlib.sha256(data).hexdigest()
        if sha256 is not None and digest != sha256:
            fix = f"expected {sha256}; correct model.weights_sha256 or the file"
            raise CheckpointError(f"the weights have sha256 {digest}", where=weights, fix=fix)
        state, source = _decode(data, weights), f"weights {weights}, sha256 {digest[:12]}"
    state = _in_our_names(state, network)
    head = network.classifier + "."
    if not (weights.startswith("run:") and _fits(state, network.module, head)):
        fresh = {name: tensor for name, tensor in network.module.state_dict().items() if name.startswith(head)}
        state = {name: tensor for name, tensor in state.items() if not name.startswith(head)} | fresh
        source += f", new class layer {network.classifier}"
    load_state(network.module, state, where=weights)
    _refuse_wild(network.module, weights)
    return f"{network.name}: {source}"


def load_state(module: nn.Module, state: Mapping[str, Tensor], *, where: str) -> None:
    """Copy a whole state dict into the module's own tensors, in place.

    Unlike load_state_dict it needs none of the version marks that safetensors drops and some networks insist on.

    Raises:
        CheckpointError: tensors that are missing, unexpected, or of another shape or kind of number, listed; nothing
            is changed then.
    """
    own = module.state_dict()
    both = own.keys() & state.keys()
    # BatchNorm's step counter came with torch 0.4.1, files from before are whole without it
    missing = [name for name in own if name not in both and not name.endswith("num_batches_tracked")]
    shapes = [
        f"{name} {list(state[name].shape)} for {list(tensor.shape)}"
        for name, tensor in own.items()
        if name in both and state[name].shape != tensor.shape
    ]
    kinds = [
        f"{name} {state[name].dtype} for {own[name].dtype}"
        for name in sorted(both)
        if state[name].is_floating_point() != own[name].is_floating_point() or state[name].is_complex()
    ]
    unexpected = [name for name in state if name not in both]
    groups = {"missing": missing, "unexpected": unexpected, "other shape": shapes, "other type": kinds}
    found = "; ".join(f"{kind}: {_listed(names)}" for kind, names in groups.items() if names)
    if found:
        fix = "give weights of this network, or its name in model.name"
        raise CheckpointError(f"the weights do not match the network: {found}", where=where, fix=fix)
    with torch.no_grad():
        for name in both:
            own[name].copy_(state[name])


def _refuse_wild(module: nn.Module, where: str) -> None:
    if wild := [name for name, tensor in module.state_dict().items() if not torch.isfinite(tensor).all()]:
        fix = "train or download them again"
        raise CheckpointError(f"the weights hold NaN or Inf: {_listed(wild)}", where=where, fix=fix)


def _listed(names: list[str]) -> str:
    more = len(names) - _NUM_LISTED
    return ", ".join(names[:_NUM_LISTED]) + (f" and {more} more" if more > 0 else "")


def _zoo_state(name: str) -> dict[str, Tensor]:
    if name.startswith("reference/"):
        fix = "set model.weights to none, a file or run:NAME"
        raise ConfigError(f"{name} has no pretrained weights", where="model.weights", fix=fix)
    if name.startswith("timm/"):
        from timm.models import is_model_pretrained

        if not is_model_pretrained(name.removeprefix("timm/")):
            fix = "set model.weights to none or a file"
            raise ConfigError(f"{name} has no pretrained weights", where="model.weights", fix=fix)
    try:
        with contextlib.redirect_stdout(sys.stderr), torch.random.fork_rng(devices=[]):
            return create(name, pretrained=True).state_dict()
    except Exception as error:  # urllib, requests and httpx have no common kind
        fix = "download them elsewhere and give the file or s3:// path, or use none"
        what = f"cannot get the zoo's weights of {name}: {type(error).__name__}: {error}"
        raise StorageError(what, where="model.weights", fix=fix) from error


def _decode(data: bytes, where: str) -> dict[str, Tensor]:
    """The tensors of a safetensors file or a torch state dict, told apart by content; no code in it is run."""
    try:
        if data[8:9] == b"{":
            return safetensors.torch.load(data)
        loaded: Any = load_plain(data)
    except Exception as error:  # a damaged or foreign file may fail in any way
        fix = "give a .safetensors file or a state dict saved with torch.save"
        what = f"neither safetensors nor a plain torch state dict, {type(error).__name__}"
        raise CheckpointError(what, where=where, fix=fix) from None
    return _unwrapped(loaded, where)


def _unwrapped(loaded: Any, where: str) -> dict[str, Tensor]:
    """The state dict in what torch.load gave, which may be a training checkpoint around it."""
    fix = "save the state dict alone"
    if not isinstance(loaded, Mapping):
        raise CheckpointError(f"no state dict but a {type(loaded).__name__}", where=where, fix=fix)
    inner = [name for name in _CONTAINERS if isinstance(loaded.get(name), Mapping)]
    if len(inner) > 1:
        raise CheckpointError(f"several state dicts: {', '.join(inner)}", where=where, fix=fix)
    state = loaded[inner[0]] if inner else loaded
    strange = [str(n) for n, value in state.items() if not (isinstance(n, str) and isinstance(value, Tensor))]
    if strange:
        raise CheckpointError(f"no state dict; other than tensors: {_listed(strange)}", where=where, fix=fix)
    return dict(state)


def _in_our_names(state: Mapping[str, Tensor], network: Network) -> dict[str, Tensor]:
    """Without the prefixes of wrappers, without auxiliary heads, and in torchvision's present names."""
    own = network.module.state_dict()
    while state and (prefix := next((p for p in _PREFIXES if all(n.startswith(p) for n in state)), None)):
        if any(name.startswith(prefix) for name in own):
            break
        state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    state = {n: tensor for n, tensor in state.items() if not n.startswith(AUXILIARY.get(network.name, ()))}
    if network.name.startswith("torchvision/densenet"):  # its files say norm.1 where the network says norm1
        old = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12])\.")
        state = {old.sub(r"\1\2.", name): tensor for name, tensor in state.items()}
    return state


def _fits(state: Mapping[str, Tensor], module: nn.Module, head: str) -> bool:
    """Whether the file's class layer has the shapes of the network's."""
    own = {name: tensor.shape for name, tensor in module.state_dict().items() if name.startswith(head)}
    return own == {name: tensor.shape for name, tensor in state.items() if name.startswith(head)}
