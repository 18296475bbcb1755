"""Heads: where they stand, that they alone train at depth 0, and that weights find their way into the rest."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from raycnn.config import HeadConfig, load_config
from raycnn.errors import CheckpointError, ConfigError
from raycnn.models.stages import find
from raycnn.models.weights import load_pretrained, load_state
from raycnn.models.zoo import Network, build
from raycnn.training.state import TrainState
from tests.unit.test_state import FACTS

LENET = "reference/lenet"
MLP = HeadConfig(kind="mlp", width=16)
WHOLE = HeadConfig(kind="mlp", width=16, replaces="classifier")


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def new_layers(network: Network) -> dict[str, tuple[int, ...]]:
    """Shapes of the weights below the network's classifier, by their path in it."""
    prefix = network.classifier + "."
    return {
        name.removeprefix(prefix): tuple(tensor.shape)
        for name, tensor in network.module.named_parameters()
        if name.startswith(prefix) and name.endswith("weight")
    }


@pytest.mark.parametrize(
    ("name", "head", "classifier", "layers"),
    [
        (LENET, MLP, "head.output", {"hidden.weight": (16, 84), "output.weight": (5, 16)}),
        (LENET, WHOLE, "head", {"hidden.weight": (16, 120), "output.weight": (5, 16)}),
        ("torchvision/alexnet", MLP, "classifier.6", {"hidden.weight": (16, 4096), "output.weight": (5, 16)}),
        ("torchvision/alexnet", WHOLE, "classifier", {"hidden.weight": (16, 9216), "output.weight": (5, 16)}),
        ("torchvision/vgg11", WHOLE, "classifier", {"hidden.weight": (16, 25088), "output.weight": (5, 16)}),
        ("torchvision/vgg11", HeadConfig(replaces="classifier"), "classifier", {"output.weight": (5, 25088)}),
        ("torchvision/resnet18", MLP, "fc", {"hidden.weight": (16, 512), "output.weight": (5, 16)}),
        ("torchvision/resnet18", WHOLE, "fc", {"hidden.weight": (16, 512), "output.weight": (5, 16)}),
        ("torchvision/mobilenet_v3_small", WHOLE, "classifier", {"hidden.weight": (16, 576), "output.weight": (5, 16)}),
        ("torchvision/densenet121", MLP, "classifier", {"hidden.weight": (16, 1024), "output.weight": (5, 16)}),
        ("torchvision/squeezenet1_1", MLP, "classifier.1",
         {"hidden.weight": (16, 512, 1, 1), "output.weight": (5, 16, 1, 1)}),
        ("timm/tf_efficientnet_lite0", MLP, "classifier", {"hidden.weight": (16, 1280), "output.weight": (5, 16)}),
    ],
)  # fmt: skip
def test_a_head_stands_in_its_place_and_the_network_splits_before_it(
    name: str, head: HeadConfig, classifier: str, layers: dict[str, tuple[int, ...]]
) -> None:
    network = build(name, 5, seed=0, head=head)
    assert network.classifier == classifier
    assert new_layers(network) == layers
    stages = find(network)
    assert stages.head.name == classifier.partition(".")[0]
    trains = {parameter for parameter, _ in stages.suffix(0).named_parameters()}
    assert {f"{classifier}.{layer}" for layer in layers} <= trains == set(stages.head.parameter_names)
    images = torch.randn(2, 3, 64, 64)
    for training in (False, True):
        whole = seeded(network.module.train(training), images)
        assert whole.shape == (2, 5)
        for depth in (0, 1, "all"):
            split = stages.split(depth)
            for part in filter(None, (split.prefix, split.suffix)):
                part.train(training)
            between = images if split.prefix is None else seeded(split.prefix, images)
            if split.prefix is None or not _draws(split.prefix):
                assert torch.equal(seeded(split.suffix, between), whole), (depth, training)


def _draws(module: nn.Module) -> bool:
    return any(isinstance(layer, nn.Dropout) for layer in module.modules())


@torch.no_grad()
def seeded(call: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return call(images)


@pytest.mark.parametrize(
    ("name", "head", "expected"),
    [
        ("torchvision/resnet18", HeadConfig(dropout=0.3), {"fc.dropout": 0.3}),
        (
            "torchvision/vgg11",
            HeadConfig(dropout=0.3),
            {"classifier.2": 0.5, "classifier.5": 0.3},
        ),  # two of its own, the latter is right before
        ("torchvision/googlenet", HeadConfig(dropout=0.0), {"dropout": 0.0}),
        ("torchvision/alexnet", HeadConfig(replaces="classifier", dropout=0.3), {"classifier.dropout": 0.3}),
        ("torchvision/alexnet", HeadConfig(replaces="classifier"), {}),
        (LENET, HeadConfig(kind="mlp", dropout=0.3), {"head.output.dropout": 0.3}),
        ("timm/tf_efficientnet_lite0", HeadConfig(dropout=0.3), {"classifier.dropout": 0.3}),
    ],
)
def test_dropout_comes_right_before_the_class_layer(name: str, head: HeadConfig, expected: dict[str, float]) -> None:
    module = build(name, 5, seed=0, head=head).module
    found = {path: layer.p for path, layer in module.named_modules() if isinstance(layer, nn.Dropout)}
    assert found == expected


def test_the_head_of_before_changes_nothing() -> None:
    one, other = (build("torchvision/resnet18", 3, seed=1, head=head) for head in (HeadConfig(), MLP))
    assert one.classifier == other.classifier == "fc"
    before, after = one.module.state_dict(), other.module.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before if not name.startswith("fc"))
    drawn = torch.get_rng_state()
    build(LENET, 3, seed=1, head=WHOLE)
    assert torch.equal(torch.get_rng_state(), drawn)


@pytest.mark.parametrize("name", ["torchvision/squeezenet1_1", "timm/convnext_atto"])
def test_a_classifier_that_is_no_sequence_of_layers_is_not_replaced_as_a_whole(name: str) -> None:
    with pytest.raises(ConfigError, match=r"model\.head\.replaces.*use layer"):
        build(name, 5, seed=0, head=WHOLE)


@pytest.mark.parametrize("head", [MLP, WHOLE])
def test_a_file_s_weights_are_loaded_into_all_but_the_head(head: HeadConfig) -> None:
    source = build(LENET, 1000, seed=0).module.state_dict()
    network = build(LENET, 5, seed=1, head=head)
    fresh = {name: tensor.clone() for name, tensor in network.module.state_dict().items()}
    line = load_pretrained(network, "file", sha256=None, read=lambda _: safetensors.torch.save(source))
    assert f"new class layer {network.classifier}" in line
    for name, tensor in network.module.state_dict().items():
        whose = fresh if name.startswith(network.classifier + ".") else source
        assert torch.equal(tensor, whose[name]), name


NARROW = HeadConfig(kind="mlp", width=8, replaces="classifier")


@pytest.mark.parametrize(
    ("head", "classes", "kept"),
    [(WHOLE, 5, True), (WHOLE, 4, False), (NARROW, 5, False), (HeadConfig(replaces="classifier"), 5, False)],
)
def test_another_run_s_head_is_kept_where_it_is_the_same_one(head: HeadConfig, classes: int, kept: bool) -> None:
    parent = build(LENET, 5, seed=0, head=WHOLE).module.state_dict()
    network = build(LENET, classes, seed=1, head=head)
    assert ("new class layer head" in load_run(network, parent)) is not kept
    loaded = network.module.state_dict()
    same = {n: n in parent and torch.equal(loaded[n], parent[n]) for n in loaded}
    assert all(same[name] for name in same if not name.startswith("head.")), "the body is the parent's"
    assert {same[name] for name in same if name.startswith("head.")} == {kept}


def test_layers_that_the_parent_s_head_has_not_are_named() -> None:
    parent = build(LENET, 5, seed=0, head=WHOLE).module.state_dict()
    with pytest.raises(CheckpointError, match=r"missing: .*head\.f6\.weight"):
        load_run(build(LENET, 5, seed=1, head=MLP), parent)


def load_run(network: Network, parent: dict[str, Tensor]) -> str:
    return load_pretrained(network, "run:parent", sha256=None, read=lambda _: safetensors.torch.save(parent))


def test_a_checkpoint_knows_its_head_and_those_of_before_had_none() -> None:
    old = TrainState(FACTS)
    assert b"head" not in old.encode()
    assert TrainState.decode(old.encode()).network.head == HeadConfig()
    state = TrainState(FACTS.__class__(FACTS.name, FACTS.classes, FACTS.preprocessing, FACTS.chunk, WHOLE))
    assert TrainState.decode(state.encode()) == state
    for wrong in (b'"width": "x"', b'"width": 0', b'"weight": 3'):
        with pytest.raises(CheckpointError):
            TrainState.decode(state.encode().replace(b'"width": 16', wrong))


def test_a_trained_network_is_rebuilt_with_its_head() -> None:
    from raycnn.results.classifier import Classifier
    from raycnn.training.serialize import encode_weights
    from raycnn.training.setup import Body, facts_of

    config = load_config(base(), {"model.head.kind": "mlp", "model.head.dropout": 0.5})
    facts = facts_of(config, ("a", "b"))
    network = build(LENET, 2, seed=3, head=config.model.head)
    network.module.eval()
    body = Body(config, facts, torch.device("cpu"))
    load_state(body.module, network.module.state_dict(), where="the same names")
    loaded = Classifier.load(encode_weights(network.module.state_dict()), facts, "float32", torch.device("cpu"))
    images = torch.randn(facts.chunk, 3, 32, 32)
    assert torch.equal(loaded.network(images), network.module(images))


def base() -> dict[str, Any]:
    return {
        "run": {"name": "r", "storage": "/x"},
        "data": {"source": "/y"},
        "model": {"name": LENET, "weights": "none"},
    }


@pytest.mark.parametrize(
    ("path", "value"), [("kind", "deep"), ("width", 0), ("dropout", 1.0), ("replaces", "all"), ("depth", 2)]
)
def test_what_no_head_can_be_is_refused_by_its_path(path: str, value: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(base(), {f"model.head.{path}": value})
    assert caught.value.where == f"model.head.{path}"
