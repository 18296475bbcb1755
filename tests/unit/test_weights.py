from __future__ import annotations

import hashlib
import io
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import torchvision.models
from torch import Tensor

from raycnn.errors import CheckpointError, ConfigError, ObjectNotFound, StorageError
from raycnn.models import weights as weights_module
from raycnn.models.weights import load_pretrained, load_state
from raycnn.models.zoo import Network, build

LENET = "reference/lenet"


def saved(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def reader(data: bytes) -> Callable[[str], bytes]:
    return lambda uri: data


def load(network: Network, data: bytes, uri: str = "some/file", sha256: str | None = None) -> str:
    return load_pretrained(network, uri, sha256=sha256, read=reader(data))


def equal(one: dict[str, Tensor], other: dict[str, Tensor], *, but: str) -> bool:
    return all(torch.equal(one[name], other[name]) for name in other if not name.startswith(but))


@pytest.fixture
def source() -> dict[str, Tensor]:
    return build(LENET, 1000, seed=0).module.state_dict()


WRAPPERS: dict[str, Callable[[dict[str, Tensor]], bytes]] = {
    "safetensors": safetensors.torch.save,
    "torch": saved,
    "torch legacy": lambda state: _legacy(state),
    "state_dict": lambda state: saved({"state_dict": state, "epoch": 3}),
    "model": lambda state: saved({"model": state, "optimizer": {"lr": 1.0}}),
    "ddp": lambda state: saved({f"module.{name}": tensor for name, tensor in state.items()}),
    "compiled ddp": lambda state: saved({"model": {f"module._orig_mod.{n}": t for n, t in state.items()}}),
    "lightning": lambda state: safetensors.torch.save({f"model.{name}": tensor for name, tensor in state.items()}),
}


def _legacy(state: dict[str, Tensor]) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS.keys())
def test_a_file_is_loaded_but_for_the_class_layer(
    wrap: Callable[[dict[str, Tensor]], bytes], source: dict[str, Tensor]
) -> None:
    network = build(LENET, 2, seed=1)
    before = {name: tensor.clone() for name, tensor in network.module.state_dict().items()}
    line = load(network, wrap(source))
    after = network.module.state_dict()
    assert equal(after, source, but="head.output")
    assert torch.equal(after["head.output.weight"], before["head.output.weight"])
    assert "some/file" in line
    assert "new class layer head.output" in line


def test_timm_lite0_at_another_number_of_classes() -> None:
    name = "timm/tf_efficientnet_lite0"
    state = build(name, 1000, seed=0).module.state_dict()
    network = build(name, 2, seed=1)
    load(network, safetensors.torch.save(state))
    assert equal(network.module.state_dict(), state, but="classifier")


def test_the_real_lite0_weights() -> None:
    from raycnn.demo.weights import lite0_weights

    state = {name: tensor.contiguous() for name, tensor in lite0_weights().items()}
    network = build("timm/tf_efficientnet_lite0", 2, seed=1)
    load(network, safetensors.torch.save(state))
    assert equal(network.module.state_dict(), state, but="classifier")


def test_a_file_with_as_many_classes_gets_a_new_class_layer_too(source: dict[str, Tensor]) -> None:
    network = build(LENET, 1000, seed=1)
    assert "new class layer" in load(network, saved(source))
    assert not torch.equal(network.module.state_dict()["head.output.weight"], source["head.output.weight"])


def test_a_run_with_as_many_classes_brings_its_class_layer(source: dict[str, Tensor]) -> None:
    network = build(LENET, 1000, seed=1)
    assert "new class layer" not in load(network, saved(source), "run:parent")
    assert equal(network.module.state_dict(), source, but="nothing")
    smaller = build(LENET, 4, seed=1)
    assert "new class layer" in load(smaller, saved(source), "run:parent")


def test_a_file_without_a_class_layer_will_do(source: dict[str, Tensor]) -> None:
    headless = {name: tensor for name, tensor in source.items() if not name.startswith("head.output")}
    load(build(LENET, 2, seed=1), saved(headless))


def test_everything_that_does_not_match_is_listed_and_nothing_is_changed(source: dict[str, Tensor]) -> None:
    del source["c3.0.weight"]
    source["extra.weight"] = torch.zeros(1)
    source["c5.0.bias"] = torch.zeros(7)
    network = build(LENET, 2, seed=1)
    before = {name: tensor.clone() for name, tensor in network.module.state_dict().items()}
    with pytest.raises(CheckpointError) as caught:
        load(network, saved(source))
    message = str(caught.value)
    assert caught.value.code == 7
    assert "missing: c3.0.weight" in message
    assert "unexpected: extra.weight" in message
    assert "other shape: c5.0.bias [7] for [120]" in message
    assert equal(network.module.state_dict(), before, but="nothing")


def test_a_long_list_is_cut() -> None:
    with pytest.raises(CheckpointError, match=r"and \d+ more"):
        load(build("torchvision/resnet18", 2, seed=0), saved(build(LENET, 2, seed=0).module.state_dict()))


def test_the_sha256_is_checked(source: dict[str, Tensor]) -> None:
    data = saved(source)
    digest = hashlib.sha256(data).hexdigest()
    load(build(LENET, 2, seed=1), data, sha256=digest)
    with pytest.raises(CheckpointError, match=digest):
        load(build(LENET, 2, seed=1), data, sha256="0" * 64)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"<html>not found</html>",
        pickle.dumps({"c1": 1}),
        saved([1, 2]),
        saved({"state_dict": {}, "state_dict_ema": {}}),
        saved({"epoch": 3}),
        saved({3: torch.zeros(1)}),
        safetensors.torch.save({}),
        safetensors.torch.save({"c1": torch.zeros(3)})[:-4],
    ],
    ids=["empty", "html", "pickle", "list", "two", "no tensors", "number", "empty safetensors", "short"],
)
def test_what_is_no_weight_file_is_refused(data: bytes) -> None:
    with pytest.raises(CheckpointError, match="some/file"):
        load(build(LENET, 2, seed=1), data)


class Code:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


def test_code_in_a_file_is_not_run(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="neither safetensors"):
        load(build(LENET, 2, seed=1), saved({"c1": Code(tmp_path / "ran")}))
    assert not (tmp_path / "ran").exists()


def test_the_readers_error_comes_through() -> None:
    def read(uri: str) -> bytes:
        raise ObjectNotFound("no such object", where=uri)

    with pytest.raises(ObjectNotFound, match="s3://bucket/key"):
        load_pretrained(build(LENET, 2, seed=1), "s3://bucket/key", sha256=None, read=read)


def test_none_leaves_the_network_as_it_was_built() -> None:
    network = build(LENET, 2, seed=1)
    assert "random" in load_pretrained(network, "none", sha256=None, read=reader(b""))
    assert equal(network.module.state_dict(), build(LENET, 2, seed=1).module.state_dict(), but="nothing")


def test_default_takes_the_zoos_weights_and_leaves_stdout_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pretrained = build("torchvision/squeezenet1_1", 1000, seed=5).module
    monkeypatch.setattr(
        weights_module, "create", lambda name, pretrained_=True, **_: print("Downloading") or pretrained
    )
    network = build("torchvision/squeezenet1_1", 2, seed=1)
    line = load_pretrained(network, "default", sha256=None, read=reader(b""))
    assert equal(network.module.state_dict(), pretrained.state_dict(), but="classifier")
    assert "default" in line
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("name", ["torchvision/squeezenet1_1", "timm/test_resnet"])
def test_a_failed_download_is_a_storage_error_with_advice(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ConnectionError("no route to host")

    monkeypatch.setattr("torchvision.models.get_model", fail)
    monkeypatch.setattr("timm.models.create_model", fail)
    network = Network(name, torch.nn.Identity(), "fc", None)
    with pytest.raises(StorageError, match="download them elsewhere"):
        load_pretrained(network, "default", sha256=None, read=reader(b""))


@pytest.mark.parametrize("name", [LENET, "timm/cspdarknet53"])
def test_networks_without_pretrained_weights_say_so(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("timm.models.is_model_pretrained", lambda _: False)
    network = Network(name, torch.nn.Identity(), "fc", None)
    with pytest.raises(ConfigError, match="no pretrained weights"):
        load_pretrained(network, "default", sha256=None, read=reader(b""))


@pytest.mark.parametrize("weights", ["none", "default"])
def test_a_sha256_needs_a_file(weights: str) -> None:
    with pytest.raises(ConfigError, match="no file"):
        load_pretrained(build(LENET, 2, seed=1), weights, sha256="0" * 64, read=reader(b""))


def test_auxiliary_heads_of_torchvisions_files_are_dropped() -> None:
    state = torchvision.models.googlenet(weights=None, init_weights=False).state_dict()
    assert any(name.startswith("aux1.") for name in state)
    network = build("torchvision/googlenet", 2, seed=1)
    load(network, saved(state))
    assert equal(network.module.state_dict(), {n: t for n, t in state.items() if "aux" not in n}, but="fc")


def test_densenet_files_from_torchvisions_hub_use_old_names() -> None:
    state = build("torchvision/densenet121", 1000, seed=0).module.state_dict()
    old = {
        re.sub(r"(denselayer\d+\.(?:norm|conv))([12])", r"\1.\2", name): tensor
        for name, tensor in state.items()
        if not name.endswith("num_batches_tracked")
    }
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    network = build("torchvision/densenet121", 2, seed=1)
    load(network, saved(old))
    assert equal(network.module.state_dict(), state, but="classifier")


def test_mnasnet_needs_no_version_mark() -> None:
    state = dict(build("torchvision/mnasnet0_5", 2, seed=0).module.state_dict())
    network = build("torchvision/mnasnet0_5", 2, seed=1)
    with pytest.raises(ValueError, match="version"):
        network.module.load_state_dict(state)  # what load_state is there for
    load_state(network.module, state, where="")
    assert equal(network.module.state_dict(), state, but="nothing")
