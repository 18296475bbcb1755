"""torch.compile of the frozen prefix and of what trains: where it is chosen, that it runs, and what it leaves alone."""

from __future__ import annotations

import gc
import shutil
import sys
import weakref
from itertools import chain, combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from raycnn.config import Config, load_config
from raycnn.errors import ConfigError
from raycnn.training import compiling, device
from raycnn.training.device import DeviceFacts, choose_compiled
from raycnn.training.learner import Learner
from raycnn.training.ranks import Ranks
from raycnn.training.setup import Body, facts_of

CPU = torch.device("cpu")
REAL = "inductor" if shutil.which("g++") else "aot_eager"
IMAGES = torch.randint(0, 256, (10, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
LABELS, VALID = torch.arange(10) % 3, torch.ones(10, dtype=torch.bool)
GPU = DeviceFacts("cuda", capability=(8, 0))


def settings(compile: str = "none", unfreeze: Any = 1) -> Config:
    tree = {
        "run": {"name": "r", "storage": "/x"},
        "data": {"source": "/y", "image_size": 32},
        "model": {"name": "reference/lenet", "unfreeze": unfreeze},
        "train": {"chunk": 4, "compile": compile},
    }
    return load_config(tree)


def body(compile: str = "none", unfreeze: Any = 1) -> Body:
    config = settings(compile, unfreeze)
    return Body(config, facts_of(config, ("a", "b", "c")), CPU)


def trained(compile: str, unfreeze: Any = 1, depth: Any = 1) -> tuple[Body, Learner]:
    """After one step."""
    made = body(compile, unfreeze)
    learner = made.learner(settings(compile, unfreeze), Ranks(), None)
    learner.enter(depth)
    learner.backward(made.prefix.taps(IMAGES, [learner.base])[learner.base], LABELS, VALID, 10, step=0)
    learner.step(0.01)
    return made, learner


def taps(made: Body, depths: Any = (0, 1)) -> dict[Any, Tensor]:
    return made.prefix.taps(IMAGES, depths)


class Counting:
    """A backend whose kernels differ from eager ones in the last bits, as those that reach across layers do."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[Tensor], **_: Any) -> Any:
        self.graphs += 1
        return lambda *given: tuple(output * (1 + 2**-20) for output in graph(*given))


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch) -> Counting:
    backend = Counting()
    monkeypatch.setattr(compiling, "BACKEND", backend)
    return backend


@pytest.mark.parametrize(
    ("setting", "facts", "expected"),
    [
        ("auto", DeviceFacts("cpu"), "none"),
        ("auto", GPU, "prefix"),
        ("auto", DeviceFacts("cuda", capability=(7, 0)), "prefix"),
        ("auto", DeviceFacts("cuda", capability=(6, 1)), "none"),
        ("auto", DeviceFacts("cuda", "Triton", (9, 0)), "none"),
        ("none", DeviceFacts("cuda", "Triton", (6, 1)), "none"),
        ("none", GPU, "none"),
        ("prefix", DeviceFacts("cpu"), "prefix"),
        ("all", DeviceFacts("cpu"), "all"),
        ("all", GPU, "all"),
    ],
)
def test_what_is_compiled_is_by_setting_and_device(setting: str, facts: DeviceFacts, expected: str) -> None:
    assert choose_compiled(setting, facts) == expected


@pytest.mark.parametrize(
    ("facts", "missing"),
    [
        (DeviceFacts("cpu", "a C++ compiler"), "a C\\+\\+ compiler"),
        (DeviceFacts("cuda", capability=(6, 1)), "a GPU of compute capability 7.0 or more"),
        (DeviceFacts("cuda", "Triton", (8, 0)), "Triton"),
    ],
)
@pytest.mark.parametrize("setting", ["prefix", "all"])
def test_what_cannot_be_done_and_is_asked_for_is_refused(setting: str, facts: DeviceFacts, missing: str) -> None:
    with pytest.raises(ConfigError, match=f"compiling needs {missing} .train.compile {setting}.: use auto or none"):
        choose_compiled(setting, facts)


def test_a_machine_without_compiler_or_headers_is_found_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(device.sysconfig, "get_path", lambda _: str(tmp_path))
    monkeypatch.setenv("CXX", sys.executable)
    assert DeviceFacts.of(CPU) == DeviceFacts("cpu", "Python's headers (Python.h)")
    (tmp_path / "Python.h").touch()
    assert DeviceFacts.of(CPU) == DeviceFacts("cpu")
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert DeviceFacts.of(CPU) == DeviceFacts("cpu", "a C++ compiler")


def test_the_facts_of_a_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "Python.h").touch()
    monkeypatch.setattr(device.sysconfig, "get_path", lambda _: str(tmp_path))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 6))
    monkeypatch.setenv("CC", sys.executable)
    found = {"triton": True}
    monkeypatch.setattr(device.importlib.util, "find_spec", lambda name: found.get(name))
    assert DeviceFacts.of(torch.device("cuda")) == DeviceFacts("cuda", "", (8, 6))
    found.clear()
    assert DeviceFacts.of(torch.device("cuda")) == DeviceFacts("cuda", "Triton", (8, 6))


def test_a_compiled_network_computes_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "BACKEND", REAL)
    eager, fast = trained("none"), trained("all")
    for depth, tap in taps(eager[0]).items():
        torch.testing.assert_close(taps(fast[0])[depth], tap, rtol=1e-5, atol=1e-5)
    before, after = eager[1].module.state_dict(), fast[1].module.state_dict()
    assert [*before] == [*after]
    for name, tensor in before.items():  # Adam's first step is the gradient's sign, whatever is left of it
        torch.testing.assert_close(after[name], tensor, rtol=1e-4, atol=1e-4)
    again = trained("all")[1].module.state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in after.items())


@pytest.mark.parametrize("compile", ["prefix", "all"])
def test_gradients_flow_in_what_trains_alone(compile: str, counting: Counting) -> None:
    start, (_, learner) = body().module.state_dict(), trained(compile, unfreeze=2, depth=0)
    moved = {name for name, tensor in learner.module.state_dict().items() if not tensor.equal(start[name])}
    assert moved == set(learner.stages.head.parameter_names)
    assert not any(tap.requires_grad for tap in taps(body(compile)).values())


def test_what_is_chosen_is_what_is_compiled(counting: Counting) -> None:
    stages = body().stages.num_stages
    for compile, graphs in {"none": 0, "auto": 0, "prefix": stages, "all": stages + 1}.items():
        counting.graphs = 0
        made, learner = trained(compile, unfreeze=1, depth=0)  # every stage is frozen, the last one for a phase
        with learner.evaluating() as network:  # without it
            network(taps(made, [learner.base])[learner.base])
        assert counting.graphs == graphs, compile


def test_bits_do_not_depend_on_the_depths_asked_for(counting: Counting) -> None:
    made = body("prefix")
    every = [0, 1, "c5.0", "c3.0"]
    every = [depth for depth in every if isinstance(depth, int) or depth in made.stages.modules]
    alone = {depth: taps(body("prefix"), [depth])[depth] for depth in every}
    assert not torch.equal(alone[0], taps(body())[0])
    for depths in chain.from_iterable(combinations(every, size) for size in (1, 2, len(every))):
        together = taps(made, depths)
        assert together.keys() == set(depths)
        assert all(torch.equal(tap, alone[depth]) for depth, tap in together.items())


def test_only_depths_that_are_asked_for_count_rows(counting: Counting) -> None:
    made = body("prefix")
    taps(made, [0])
    taps(made, [1, made.stages.num_stages])
    assert dict(made.prefix.rows) == {0: 10, 1: 10}


def test_what_is_kept_of_a_compiled_prefix_has_another_name() -> None:
    assert body("prefix").identity(0) == body("all").identity(0) != body().identity(0) == body("auto").identity(0)


def test_a_trial_that_was_dropped_is_gone(counting: Counting) -> None:
    shared, config = body("all"), settings("all")
    inputs = taps(shared)[1]
    for count in range(1, 12):  # more than torch compiles of one function
        learner = shared.copied_learner(config, Ranks(), None)
        learner.enter(1)
        graphs = counting.graphs
        learner.backward(inputs, LABELS, VALID, 10, step=0)
        assert counting.graphs == graphs + 1, count
    gone = weakref.ref(learner.module.get_parameter(learner.stages.head.parameter_names[0]))
    del learner
    gc.collect()
    assert gone() is None


def test_a_backend_that_fails_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("no kernel for this")

    monkeypatch.setattr(compiling, "BACKEND", broken)
    with pytest.raises(ConfigError, match=r"no kernel for this .train.compile.: use none"):
        taps(body("prefix"))
