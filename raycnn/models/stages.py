"""A network as an ordered list of stages with a head, and its split into a frozen prefix and a suffix that trains."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from itertools import chain, groupby, pairwise

from torch import nn

from raycnn.config import Depth
from raycnn.errors import ConfigError
from raycnn.models.tracing import Cut, Trace, Untraceable, trace
from raycnn.models.zoo import Network, native_size

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Stage:
    """Some consecutive layers.

    Args:
        name: path of its first module, or first..last.
        parameters: how many numbers it trains.
        parameter_names: in the order of the network's parameters.
    """

    name: str
    parameters: int
    parameter_names: tuple[str, ...]


@dataclass(frozen=True)
class Split:
    """suffix(prefix(x)) is the network; both share its parameters under their names. No prefix: all is suffix."""

    prefix: nn.Module | None
    suffix: nn.Module


@dataclass(frozen=True)
class Stages:
    """The stages of a network.

    Args:
        stages: from input to output, each with parameters; the head is not among them.
        head: the classifier module.
        cuttable: whether the network can be split; if not, one stage holds all but its class layer.
    """

    stages: tuple[Stage, ...]
    head: Stage
    cuttable: bool
    _network: Network
    _trace: Trace | None
    _ends: tuple[Cut, ...]
    _starts: Mapping[str, Cut | None]

    @property
    def num_stages(self) -> int:
        """Number of stages beside the head: the deepest depth, the same as `all`."""
        return len(self.stages)

    @property
    def modules(self) -> tuple[str, ...]:
        """Paths of the modules from which on the network can train, in execution order."""
        return tuple(self._starts)

    def canonical(self, depth: Depth) -> Depth:
        """The depth under its one name: a number where a stage starts there, else the outermost module's path.

        Raises:
            ConfigError: the network has no such depth.
        """
        cut = self._cut(depth)
        if cut is None:
            return self.num_stages
        if cut in self._ends:
            return self.num_stages - 1 - self._ends.index(cut)
        return next(name for name, start in self._starts.items() if start == cut)

    def deepest_first(self, depths: Iterable[Depth]) -> list[Depth]:
        """The depths in order; what trains at one trains at all before it."""

        def start(depth: Depth) -> int:
            cut = self._cut(depth)
            return -1 if cut is None else cut.index

        return sorted(depths, key=start)

    def split(self, depth: Depth) -> Split:
        """The network in two, where the suffix is the head and the last `depth` stages."""
        return Split(self.between("all", depth), self.suffix(depth))

    def suffix(self, depth: Depth) -> nn.Module:
        """What trains at `depth`: the head and the last `depth` stages."""
        cut = self._cut(depth)
        return self._network.module if self._trace is None else self._trace.part(cut, None)

    def between(self, deep: Depth, shallow: Depth) -> nn.Module | None:
        """What lies before the suffix of `shallow`, from the start of the suffix of `deep` on; None: nothing."""
        start, end = self._cut(deep), self._cut(shallow)
        if self._trace is None or end is None or start == end:
            return None
        return self._trace.part(start, end)

    def copy(self, depth: Depth) -> tuple[Network, Stages]:
        """A network whose suffix at `depth` is a copy of its own; all before it is shared with this one."""
        own = self.suffix(depth)
        copied = {id(tensor) for tensor in chain(own.parameters(), own.buffers())}
        module = self._network.module
        shared = {id(t): t for t in chain(module.parameters(), module.buffers()) if id(t) not in copied}
        network = replace(self._network, module=copy.deepcopy(module, shared))
        traced = None if self._trace is None else replace(self._trace, module=network.module)
        return network, replace(self, _network=network, _trace=traced)

    def _cut(self, depth: Depth) -> Cut | None:
        """Where the suffix of `depth` starts; None: at the images."""
        name = self._network.name
        if depth in ("all", self.num_stages):
            return None
        if not self.cuttable:
            raise ConfigError(f"{name} cannot be cut into stages", where="model.unfreeze", fix="use all")
        if isinstance(depth, str):
            return self._start(depth)
        if not 0 <= depth < self.num_stages:
            fix = f"use 0 to {self.num_stages}, or all"
            raise ConfigError(f"{name} has {self.num_stages} stages", where=f"model.unfreeze {depth}", fix=fix)
        return self._ends[self.num_stages - depth - 1]

    def _start(self, module: str) -> Cut | None:
        if module not in self._starts:
            near = get_close_matches(module, self._starts, n=3) or [*self._starts][-3:]
            fix = f"use 0 to {self.num_stages}, all, or a module like {', '.join(near)}"
            where = f"model.unfreeze {module}"
            raise ConfigError(f"{self._network.name} cannot be cut before {module}", where=where, fix=fix)
        return self._starts[module]


def find(network: Network) -> Stages:
    """The stages of the network, found by tracing it at its native image size.

    The head is the top module that holds the class layer, with the dropout right before it. Stages end at the
    last cut of each spatial resolution before the head, between two blocks where there is such a one; a stage
    without parameters joins its neighbour. A network that cannot be cut is named in a warning.
    """
    module = network.module
    top = network.classifier.partition(".")[0]
    try:
        traced = trace(module, native_size(network))
        head_cut = _head_cut(traced, top + ".")
        ends = _ends(traced, head_cut)
    except Untraceable as reason:
        _log.warning("%s cannot be cut into stages, it trains at depth all only: %s", network.name, reason)
        names = [name for name, _ in module.named_parameters()]
        head = [name for name in names if name.startswith(network.classifier + ".")]
        body = _stage(module, set(names) - set(head))
        return Stages((body,), _stage(module, set(head)), False, network, None, (), {})
    starts = [0, *(end.index + 1 for end in ends)]
    *stages, head_stage = (
        _stage(module, _names(traced, start, stop)) for start, stop in pairwise([*starts, len(traced.nodes)])
    )
    return Stages(tuple(stages), head_stage, True, network, traced, ends, _starts(traced, head_cut, ends))


def _head_cut(traced: Trace, head: str) -> Cut:
    """The last cut before the head's first parameter or dropout: pooled features are small to keep and to send."""
    body = [i for i, names in enumerate(traced.states) if any(not name.startswith(head) for name in names)]
    cuts = [cut for cut in traced.cuts if cut.index >= max(body, default=0)]
    if not cuts or any(name.startswith(head) for name in _names(traced, 0, cuts[0].index + 1)):
        raise Untraceable(f"no single tensor goes into its head {head[:-1]}")
    stop = cuts[0].index + 1
    while not traced.states[stop] and not _stops(traced, stop):
        stop += 1
    return [cut for cut in cuts if cut.index < stop][-1]


def _stops(traced: Trace, index: int) -> bool:
    """Whether the node is a dropout, or the network's output."""
    node = traced.nodes[index]
    if node.op != "call_module":
        return node.op == "output" or node.target is nn.functional.dropout
    return isinstance(traced.module.get_submodule(str(node.target)), nn.modules.dropout._DropoutNd)


def _ends(traced: Trace, head_cut: Cut) -> tuple[Cut, ...]:
    """The cut that ends each stage."""
    cuts = [cut for cut in traced.cuts if cut.index <= head_cut.index]
    runs = [list(run) for _, run in groupby(cuts, key=lambda cut: cut.resolution)]
    # inside an inverted bottleneck lie cuts with six times the channels of those between two blocks
    candidates = [max(run, key=lambda cut: (-cut.num_blocks, cut.index)) for run in runs[:-1]]
    parameters = {name for name, _ in traced.module.named_parameters()}
    ends: list[Cut] = []
    start = 0
    for cut in [*candidates, head_cut]:
        if parameters & _names(traced, start, cut.index + 1):
            ends.append(cut)
        elif ends:
            ends[-1] = cut
        else:
            continue
        start = cut.index + 1
    return tuple(ends)


def _starts(traced: Trace, head_cut: Cut, ends: tuple[Cut, ...]) -> dict[str, Cut | None]:
    """The cut right before each module that has one, the head's aside; None where the module is the first."""
    starts: dict[str, Cut | None] = {}
    seen: set[str] = set()
    before = -1  # the last node with parameters or buffers
    for index, names in enumerate(traced.states[: head_cut.index + 1]):
        if not names:
            continue
        cuts = [cut for cut in traced.cuts if before <= cut.index < index]
        best = max(cuts, key=lambda cut: (cut in ends, -cut.num_blocks, cut.index), default=None)
        for module in chain.from_iterable(map(_ancestors, sorted(names))):
            whole = all(name.startswith(module + ".") for name in names)
            if module not in seen and whole and (best is not None or before < 0):
                starts[module] = None if before < 0 else best
        seen.update(chain.from_iterable(map(_ancestors, names)))
        before = index
    return starts


def _ancestors(name: str) -> list[str]:
    """The modules that a parameter lies in, outermost first."""
    parts = name.split(".")
    return [".".join(parts[:size]) for size in range(1, len(parts))]


def _names(traced: Trace, start: int, stop: int) -> set[str]:
    return set(chain.from_iterable(traced.states[start:stop]))


def _stage(module: nn.Module, names: Iterable[str]) -> Stage:
    chosen = {name: tensor for name, tensor in module.named_parameters() if name in set(names)}
    return Stage(_name(module, tuple(chosen)), sum(t.numel() for t in chosen.values()), tuple(chosen))


def _name(module: nn.Module, names: tuple[str, ...]) -> str:
    """The largest modules that lie in it whole: the first one, or first..last."""
    outside = {name for name, _ in module.named_parameters()} - set(names)
    tops = [_top(name, outside) for name in names]
    first, last = tops[0], tops[-1]
    parent = first.rpartition(".")[0]
    last = last.removeprefix(parent + ".") if parent else last
    return first if first == tops[-1] else f"{first}..{last}"


def _top(name: str, outside: set[str]) -> str:
    parts = name.split(".")
    for size in range(1, len(parts)):
        path = ".".join(parts[:size])
        if not any(other.startswith(path + ".") for other in outside):
            return path
    return name
