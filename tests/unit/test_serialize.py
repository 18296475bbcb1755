"""Weights and optimizer state as bytes."""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from raycnn.errors import CheckpointError
from raycnn.training.serialize import decode_optimizer, decode_weights, encode_optimizer, encode_weights


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(equal, a, b))
    return type(a) is type(b) and bool(a == b)


def test_weights_come_back_bit_for_bit() -> None:
    base = torch.randn(4, 3, 5, 5)
    state = {
        "plain": base,
        "channels_last": base.to(memory_format=torch.channels_last),
        "tied": base,
        "view": base[1:3, ::2],
        "scalar": torch.tensor(3),
        "half": base.bfloat16(),
        "nan": torch.tensor([float("nan"), float("-inf"), -0.0]).view(torch.int32),
        "trained": nn.Parameter(base),
    }
    decoded = decode_weights(encode_weights(state))
    assert decoded.keys() == state.keys()
    assert all(equal(decoded[name], tensor.detach()) for name, tensor in state.items())
    assert all(tensor.is_contiguous() and not tensor.requires_grad for tensor in decoded.values())


def test_equal_weights_give_equal_bytes() -> None:
    a, b = torch.randn(2, 3, 4, 4), torch.randn(7)
    other = {"b": b.clone(), "a": a.clone().to(memory_format=torch.channels_last)}
    assert encode_weights({"a": a, "b": b}) == encode_weights(other)


@pytest.mark.parametrize("data", [b"", b"{}", b"\x10" + bytes(7) + b"{}", pickle.dumps({"a": 1})])
def test_what_is_no_safetensors_file_is_refused(data: bytes) -> None:
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        decode_weights(data)


def test_truncated_weights_are_refused() -> None:
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        decode_weights(encode_weights({"a": torch.ones(9)})[:-1])


def optimizer(*sizes: int) -> torch.optim.AdamW:
    groups = [{"params": [nn.Parameter(torch.ones(size))], "weight_decay": 0.1} for size in sizes]
    return torch.optim.AdamW(groups, lr=1e-3, foreach=False)


def step(optimizer: torch.optim.Optimizer, *groups: int) -> None:
    for index in groups:
        for parameter in optimizer.param_groups[index]["params"]:
            parameter.grad = torch.full_like(parameter, 0.5)
    optimizer.step()
    optimizer.zero_grad()


def test_optimizer_state_comes_back() -> None:
    adam = optimizer(3, 2)
    step(adam, 0, 1)
    state = {"optimizer": adam.state_dict(), "scaler": {}, "best": None, "on": True, "betas": (0.9, [1, "x"])}
    assert equal(decode_optimizer(encode_optimizer(state)), state)


def test_a_resumed_optimizer_gives_the_bytes_of_an_undisturbed_one() -> None:
    """Also where a stage unfreezes after the resumption: its state is new, the other's came out of a file."""
    undisturbed, resumed = optimizer(3, 2), optimizer(3, 2)
    step(undisturbed, 0)
    resumed.load_state_dict(decode_optimizer(encode_optimizer(undisturbed.state_dict())))
    for adam in (undisturbed, resumed):
        step(adam, 0, 1)
    assert encode_optimizer(undisturbed.state_dict()) == encode_optimizer(resumed.state_dict())


class Payload:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def in_zip(pickled: bytes) -> bytes:
    buffer = io.BytesIO()
    torch.save({"state": torch.ones(3)}, buffer)
    out = io.BytesIO()
    with zipfile.ZipFile(buffer) as source, zipfile.ZipFile(out, "w") as target:
        for name in source.namelist():
            target.writestr(name, pickled if name.endswith("/data.pkl") else source.read(name))
    return out.getvalue()


@pytest.mark.parametrize("container", ["pickle", "zip", "torch.save"])
def test_a_pickle_with_a_payload_is_refused_and_not_run(tmp_path: Path, container: str) -> None:
    path = tmp_path / "owned"
    hostile = {"state": Payload(path)}
    data = pickle.dumps(hostile, protocol=2)
    if container == "zip":
        data = in_zip(data)
    elif container == "torch.save":
        buffer = io.BytesIO()
        torch.save(hostile, buffer)
        data = buffer.getvalue()
    with pytest.raises(CheckpointError, match="refused an optimizer state") as caught:
        decode_optimizer(data)
    assert caught.value.code == 7
    assert "\n" not in str(caught.value)
    assert not path.exists()
    pickle.loads(pickle.dumps(hostile))  # the payload does work where code may run
    assert path.exists()


def test_a_whole_module_is_refused() -> None:
    buffer = io.BytesIO()
    torch.save({"state": nn.Linear(2, 2)}, buffer)
    with pytest.raises(CheckpointError, match="refused"):
        decode_optimizer(buffer.getvalue())


@pytest.mark.parametrize("data", [b"", b"abc", b"PK\x03\x04", pickle.dumps([1], protocol=2)])
def test_what_is_no_optimizer_state_is_refused(data: bytes) -> None:
    with pytest.raises(CheckpointError, match="refused an optimizer state"):
        decode_optimizer(data)


def test_another_kind_of_state_is_refused() -> None:
    with pytest.raises(CheckpointError, match="not a dictionary"):
        decode_optimizer(encode_optimizer([1, 2]))  # type: ignore[arg-type]
