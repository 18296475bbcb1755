"""The layers that stand in the place of a network's class layer, or of its whole classifier."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from raycnn.config import HeadConfig
from raycnn.errors import ConfigError


def replace_head(module: nn.Module, classifier: str, head: HeadConfig) -> str:
    """Put the head in its place, in the module; without anything to replace nothing is touched.

    New layers have torch's default initialisation. Dropout right before the class layer: where the network has a
    layer for it there, that one's probability is set.

    Args:
        module: the network.
        classifier: path of its class layer.

    Returns:
        Path of what the head has new: the class layer, or what stands in its place.

    Raises:
        ConfigError: the whole classifier is to be replaced, and it is no plain sequence that begins with a Linear.
    """
    layer = module.get_submodule(classifier)
    assert isinstance(layer, nn.Linear | nn.Conv2d)
    top = classifier.partition(".")[0]
    if head.replaces == "classifier" and top != classifier:
        first = _first(module.get_submodule(top))
        layers = OrderedDict[str, nn.Module](flatten=nn.Flatten())
        module.set_submodule(top, nn.Sequential(layers | _layers(first, layer, head)))
        return top
    if head.kind == "mlp":
        module.set_submodule(classifier, nn.Sequential(_layers(layer, layer, head)))
    elif head.dropout is not None:
        before = _right_before(module, layer)
        if isinstance(before, nn.modules.dropout._DropoutNd):
            before.p = head.dropout
        else:
            layers = OrderedDict[str, nn.Module](dropout=nn.Dropout(head.dropout), output=layer)
            module.set_submodule(classifier, nn.Sequential(layers))
    return classifier


def _layers(first: nn.Linear | nn.Conv2d, last: nn.Linear | nn.Conv2d, head: HeadConfig) -> OrderedDict[str, nn.Module]:
    """From the inputs of `first` to the outputs of `last`."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    size = first.weight.shape[1]
    if head.kind == "mlp":
        layers["hidden"] = _like(last, size, head.width)
        layers["relu"] = nn.ReLU()
        size = head.width
    if head.dropout is not None:
        layers["dropout"] = nn.Dropout(head.dropout)
    layers["output"] = _like(last, size, last.weight.shape[0])
    return layers


def _like(layer: nn.Linear | nn.Conv2d, inputs: int, outputs: int) -> nn.Module:
    """A class layer that is a convolution looks at every place by itself."""
    return nn.Linear(inputs, outputs) if isinstance(layer, nn.Linear) else nn.Conv2d(inputs, outputs, 1)


def _first(classifier: nn.Module) -> nn.Linear:
    """The first of the layers with weights of a classifier that can be replaced as a whole."""
    layers = [layer for layer in classifier.modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
    if isinstance(classifier, nn.Sequential) and isinstance(layers[0], nn.Linear):
        return layers[0]
    what = f"this network's classifier is no plain sequence of layers but a {type(classifier).__name__}"
    raise ConfigError(what, where="model.head.replaces", fix="use layer")


def _right_before(module: nn.Module, layer: nn.Module) -> nn.Module | None:
    """What was registered before it, as forwards run in that order."""
    leaves = [each for each in module.modules() if not any(each.children())]
    place = leaves.index(layer)
    return leaves[place - 1] if place else None
