"""Checkpoints and weight files as they should not be, each with its verdict."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from tests.faults.kit.confined import Job

NETWORK = "reference/lenet"
CLASSES = 3


@dataclass(frozen=True)
class Case:
    """One kind of file, and how `verdict` begins. `make` gets the path that a payload would create."""

    name: str
    make: Callable[[Path], bytes]
    verdict: str
    sha256: str | None = None


class Payload:
    """Creates a folder where pickle may run code."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def state(classes: int = 1000) -> dict[str, Tensor]:
    """The weights of a good file."""
    from raycnn.models.zoo import build

    return build(NETWORK, classes, seed=0).module.state_dict()


def saved(value: Any) -> bytes:
    """As torch.save writes it."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def rezipped(data: bytes, compression: int = zipfile.ZIP_STORED, **instead: bytes) -> bytes:
    """A torch archive written anew; `instead` replaces members by the end of their names."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w", compression) as new:
        for name in old.namelist():
            new.writestr(name, next((b for end, b in instead.items() if name.endswith(end)), old.read(name)))
    return out.getvalue()


def _safetensors(change: Callable[[dict[str, Tensor]], Any]) -> Callable[[Path], bytes]:
    def make(_: Path) -> bytes:
        tensors = state()
        change(tensors)
        return safetensors.torch.save(tensors)

    return make


def _header(facts: dict[str, Any], length: int | None = None) -> bytes:
    text = json.dumps(facts).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text


def _first(tensors: dict[str, Tensor]) -> str:
    return next(name for name in tensors if name.endswith("weight"))


def _with(value: Callable[[Tensor], Tensor]) -> Callable[[dict[str, Tensor]], None]:
    def change(tensors: dict[str, Tensor]) -> None:
        tensors[_first(tensors)] = value(tensors[_first(tensors)])

    return change


def _stretched(_: Path) -> bytes:
    """A tensor of a thousand billion elements over the memory of one."""
    tensors = state()
    tensors[_first(tensors)] = torch.zeros(1).expand(10**12)
    return saved(tensors)


def _zip_bomb(_: Path) -> bytes:
    data = saved({"a": torch.zeros(4)})
    return rezipped(data, zipfile.ZIP_DEFLATED, **{"/data/0": bytes(2**30)})


NO_FILE = "7: neither safetensors nor a plain torch state dict"
NO_MATCH = "7: the weights do not match the network: "
WEIGHTS: list[Case] = [
    Case("good.safetensors", _safetensors(lambda tensors: None), "loaded"),
    Case("half.safetensors", _safetensors(_with(Tensor.half)), "loaded"),
    Case("payload.pkl", lambda path: pickle.dumps({"a": Payload(path)}, protocol=2), NO_FILE),
    Case("payload.pth", lambda path: saved({"a": Payload(path)}), NO_FILE),
    Case("payload_in_zip.pth", lambda path: rezipped(
        saved({"a": torch.ones(2)}), **{"data.pkl": pickle.dumps(Payload(path), protocol=2)}), NO_FILE),
    Case("module.pth", lambda _: saved(torch.nn.Linear(2, 2)), NO_FILE),
    Case("truncated.safetensors", lambda path: _safetensors(lambda t: None)(path)[:-1], NO_FILE),
    Case("truncated.pth", lambda _: saved(state())[:-400], NO_FILE),
    Case("huge_header.safetensors", lambda _: _header({}, 2**62) + b" " * 99, NO_FILE),
    Case("huge_tensor.safetensors", lambda _: _header(
        {"a": {"dtype": "F32", "shape": [2**31, 2**31], "data_offsets": [0, 2**64 - 4]}}), NO_FILE),
    Case("outside.safetensors", lambda _: _header(
        {"a": {"dtype": "F32", "shape": [1], "data_offsets": [1000, 1004]}}) + bytes(4), NO_FILE),
    Case("zip_bomb.pth", _zip_bomb, NO_FILE),
    Case("stretched.pth", _stretched, NO_MATCH),
    Case("shape.safetensors", _safetensors(_with(lambda tensor: tensor[:1].clone())), NO_MATCH + "other shape: "),
    Case("integers.safetensors", _safetensors(_with(Tensor.char)), NO_MATCH + "other type: "),
    Case("missing.safetensors", _safetensors(lambda tensors: tensors.pop(_first(tensors))), NO_MATCH + "missing: "),
    Case("extra.safetensors", _safetensors(
        lambda tensors: tensors.update({f"extra.{n}": torch.ones(1) for n in range(5000)})), NO_MATCH + "unexpected: "),
    Case("nan.safetensors", _safetensors(_with(lambda tensor: tensor * float("nan"))), "7: the weights hold NaN"),
    Case("infinite.pth", lambda _: saved({n: t / 0 for n, t in state().items()}), "7: the weights hold NaN"),
    Case("other_hash.safetensors", _safetensors(lambda tensors: None), "7: the weights have sha256", "0" * 64),
    Case("empty.pth", lambda _: b"", NO_FILE),
    Case("html.pth", lambda _: b"<html>" * 99, NO_FILE),
    Case("list.pth", lambda _: saved([torch.ones(1)]), "7: no state dict but a list"),
    Case("mixed.pth", lambda _: saved({"a": torch.ones(1), "b": "text"}), "7: no state dict; other than tensors"),
]  # fmt: skip
"""As model.weights."""

FILES = ("weights.safetensors", "optimizer.pt", "state.json", "metrics.jsonl")
DEEP = b"[" * 200_000
COMMITS: list[tuple[str, str, Callable[[Path], bytes], str]] = [
    ("good", "state.json", lambda _: _state_json(), "loaded"),
    ("optimizer with a payload", "optimizer.pt", lambda path: saved({"optimizer": Payload(path)}), "7: refused an opt"),
    ("optimizer as a bomb", "optimizer.pt", _zip_bomb, "7: refused an optimizer state: a packed archive"),
    ("optimizer of another network", "optimizer.pt", lambda _: saved(
        {"optimizer": {"state": {}, "param_groups": [{"params": [0]}] * 9}, "scaler": {}}), "7: not the state of"),
    ("optimizer without parts", "optimizer.pt", lambda _: saved({"a": 1}), "7: not the state of this optimizer"),
    ("weights as a pickle", "weights.safetensors", lambda path: saved({"a": Payload(path)}), "7: not a safetensors"),
    ("weights of another network", "weights.safetensors", lambda _: safetensors.torch.save({"a": torch.ones(1)}),
     "7: the weights do not match the network"),
    ("state as garbage", "state.json", lambda _: b"\x80\x04\x95", "7: not a training state"),
    ("state as text", "state.json", lambda _: b'"text"', "7: not a training state"),
    ("state nested deep", "state.json", lambda _: DEEP, "7: not a training state"),
    ("state of a network that is none", "state.json", lambda _: _state_json(name="timm/hf-hub:me/net"),
     "2: unknown network"),
    ("state without numbers", "state.json", lambda _: _state_json(chunk="os.system"), "7: not a training state"),
]  # fmt: skip
"""A file of a commit whose manifest names that very content: (name, file, content, verdict)."""

MANIFESTS: list[tuple[str, Callable[[dict[str, Any]], bytes]]] = [
    ("garbage", lambda _: b"\x00\xff"),
    ("empty", lambda _: b""),
    ("huge", lambda facts: json.dumps(facts).encode() + b" " * (17 << 20)),
    ("nested deep", lambda _: DEEP),
    ("a list", lambda _: b"[]"),
    ("a file outside", lambda facts: json.dumps(facts | {"files": {"..": {"size": 1, "sha256": "0"}}}).encode()),
    ("an absolute file", lambda facts: json.dumps(
        facts | {"files": {"/etc/passwd": {"size": 1, "sha256": "0"}}}).encode()),
    ("a size without end", lambda facts: json.dumps(
        facts | {"files": {"state.json": {"size": 10**30, "sha256": "0"}}}).encode()),
    ("another step", lambda facts: json.dumps(facts | {"step": 99}).encode()),
]  # fmt: skip
"""In the place of the newest commit's MANIFEST.json; the commit before it is to be taken."""


def _facts(**changes: Any) -> Any:
    from raycnn.models.zoo import preprocessing
    from raycnn.training.state import NetworkFacts

    fields = {"name": NETWORK, "classes": ("a", "b", "c"), "preprocessing": preprocessing(NETWORK), "chunk": 4}
    return NetworkFacts(**fields | changes)


def _state_json(**changes: Any) -> bytes:
    from raycnn.training.state import TrainState

    return TrainState(_facts(**changes), 1).encode()


def _config() -> Any:
    from raycnn.config import load_config

    run, data = {"name": "a", "storage": "/x"}, {"source": "/y"}
    return load_config({"run": run, "data": data, "model": {"name": NETWORK, "weights": "none", "unfreeze": "all"}})


def _contents() -> dict[str, bytes]:
    """The files of a good commit."""
    from raycnn.training.serialize import encode_optimizer, encode_weights

    weights, optimizer = _learner().snapshot()
    return dict(zip(FILES, (encode_weights(weights), encode_optimizer(optimizer), _state_json(), b""), strict=True))


def _learner(facts: Any = None) -> Any:
    from raycnn.training.setup import Body

    config = _config()
    return Body(config, facts or _facts(), torch.device("cpu")).learner(config, 1, None)


def _told(work: Callable[[], str], trap: Path) -> Callable[[], str]:
    def run() -> str:
        from raycnn.errors import RaycnnError

        try:
            verdict = work()
        except RaycnnError as error:
            verdict = f"{error.code}: {error}"
        return f"ran code: {verdict}" if trap.exists() else verdict

    return run


def loading() -> Iterator[Job]:
    """Every weight file as model.weights, and every commit as a worker restores it."""
    from raycnn.models.weights import load_pretrained
    from raycnn.models.zoo import build
    from raycnn.storage import open_store
    from raycnn.training import checkpoint
    from raycnn.training.serialize import decode_optimizer, decode_weights
    from raycnn.training.state import TrainState

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        trap = Path(folder) / "trap"

        def weights(case: Case) -> Callable[[], str]:
            data = case.make(trap)
            network = build(NETWORK, CLASSES, seed=1)

            def work() -> str:
                load_pretrained(network, case.name, sha256=case.sha256, read=lambda _: data)
                return "loaded"

            return _told(work, trap)

        def commit(number: int, file: str, make: Callable[[Path], bytes]) -> Callable[[], str]:
            store = open_store(f"{folder}/{number}")
            checkpoint.write(store, 1, 1, _contents() | {file: make(trap)}, {}, guard=lambda: None)

            def work() -> str:
                newest = checkpoint.latest(store, None)
                assert newest is not None
                files = checkpoint.verified(store, newest)
                learner = _learner(TrainState.decode(files["state.json"]).network)
                learner.restore(decode_weights(files["weights.safetensors"]), decode_optimizer(files["optimizer.pt"]))
                return "loaded"

            return _told(work, trap)

        def manifest(number: int, make: Callable[[dict[str, Any]], bytes]) -> Callable[[], str]:
            store = open_store(f"{folder}/m{number}")
            for step in (1, 2):
                found = checkpoint.write(store, step, 1, {"state.json": b"{}"}, {}, guard=lambda: None)
            store.put(found.place.key("MANIFEST.json"), make(dict(found.manifest)))

            def work() -> str:
                newest = checkpoint.latest(store, None)
                return "none" if newest is None else newest.name

            return _told(work, trap)

        yield "warm", lambda: commit(99, "state.json", lambda _: _state_json())  # for all that is imported
        for case in WEIGHTS:
            yield case.name, lambda case=case: weights(case)  # type: ignore[misc]
        for number, (name, file, make, _) in enumerate(COMMITS):
            yield name, lambda number=number, file=file, make=make: commit(number, file, make)  # type: ignore[misc]
        for number, (name, change) in enumerate(MANIFESTS):
            yield f"manifest: {name}", lambda n=number, change=change: manifest(n, change)  # type: ignore[misc]
