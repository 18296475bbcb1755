"""A network as a graph of module calls, and the places where it can be cut in two."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, fx, nn


class Untraceable(Exception):  # noqa: N818
    """The network has no graph that holds in eval and in train mode; the message says why."""


@dataclass(frozen=True)
class Cut:
    """One tensor, all that lives between what comes before it and what comes after.

    Args:
        index: position in the graph's nodes of the one that computes it.
        resolution: its spatial size in pixels, (height, width); (1, 1) for a vector.
        num_blocks: modules that it lies inside of, containers that only call one layer after the other aside.
    """

    index: int
    resolution: tuple[int, ...]
    num_blocks: int


@dataclass(frozen=True)
class Trace:
    """A network's graph in execution order.

    Args:
        nodes: input first, output last.
        states: for each node the parameters and buffers that it reads, by their first name in the network.
        cuts: every place at which the network may be cut, in execution order.
    """

    module: nn.Module
    nodes: tuple[fx.Node, ...]
    states: tuple[frozenset[str], ...]
    cuts: tuple[Cut, ...]

    def part(self, start: Cut | None, end: Cut | None) -> fx.GraphModule:
        """What computes the tensor at `end` from the one at `start` (None: the output, the input).

        It shares parameters, buffers and layers with the network, under the network's names.
        """
        first = 0 if start is None else start.index
        last = len(self.nodes) - 1 if end is None else end.index
        graph = fx.Graph()
        copies = {self.nodes[first]: graph.placeholder("x")}

        def copied(node: fx.Node) -> fx.Node:
            if node not in copies:  # parameters are read where they are needed, on either side of a cut
                copies[node] = graph.node_copy(node, copied)
            return copies[node]

        for node in self.nodes[first + 1 : last + 1]:
            if node.op != "get_attr":
                copied(node)
        if end is not None:
            graph.output(copies[self.nodes[last]])
        return fx.GraphModule(self.module, graph, class_name=type(self.module).__name__)


def trace(module: nn.Module, image_size: int) -> Trace:
    """The graph of a network and its cuts at square inputs of image_size pixels; the module stays as it is.

    Raises:
        Untraceable: its forward does not become a graph, or not the same one in eval and in train mode.
    """
    ghost = _ghost(module)
    graph = _graph(ghost)
    nodes = tuple(graph.nodes)
    states = _states(module, nodes)
    tensors = _stable_tensors(ghost, graph, image_size)
    cuts = []
    for index in _lone(nodes, _owners(nodes, states)):
        tensor = tensors.get(nodes[index])
        if tensor is not None:
            after = next(node for node in nodes[index + 1 :] if node.op != "get_attr")
            inside = _blocks(module, nodes[index]) & _blocks(module, after)
            cuts.append(Cut(index, _resolution(tensor), len(inside)))
    return Trace(module, nodes, states, tuple(cuts))


def _ghost(module: nn.Module) -> nn.Module:
    """A copy on the meta device: shapes without numbers or memory, to do with as we please."""
    memo: dict[int, Any] = {id(b): b.to("meta") for b in module.buffers()}
    memo |= {id(p): nn.Parameter(p.detach().to("meta"), requires_grad=False) for p in module.parameters()}
    return copy.deepcopy(module, memo)


class _Tracer(fx.Tracer):
    """Calls of layers become nodes; containers are walked through where they can be.

    The root's own `training` flag is read when the graph runs; where it decides what is traced, it is `mode`.
    """

    def __init__(self, mode: bool) -> None:
        super().__init__()
        self.mode = mode

    def create_args_for_root(
        self, root_fn: Any, is_module: bool, concrete_args: dict[str, Any] | tuple[Any, ...] | None = None
    ) -> tuple[Any, list[Any]]:
        found: tuple[Any, list[Any]] = super().create_args_for_root(root_fn, is_module, concrete_args)
        self.root.training = self.create_proxy("get_attr", "training", (), {})  # type: ignore[assignment]
        return found

    def to_bool(self, obj: fx.Proxy) -> bool:
        return self.mode if obj.node.target == "training" else super().to_bool(obj)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return not any(m.children()) or super().is_leaf_module(m, module_qualified_name)

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        before, depth = len(self.graph.nodes), len(self.module_stack)
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception:  # whatever a forward says to a proxy: then this container is one node
            for node in list(self.graph.nodes)[: before - 1 : -1]:
                self.graph.erase_node(node)
            while len(self.module_stack) > depth:
                self.module_stack.popitem()
            return self.create_proxy("call_module", self.path_of_module(m), args, kwargs)


def _graph(ghost: nn.Module) -> fx.Graph:
    """Traced without `training` flags: a container that reads its own fails, and becomes one node that keeps it.

    The root cannot become a node; its graphs in eval and in train mode must agree.
    """
    for layer in ghost.modules():
        del layer.training
    graphs = []
    for mode in (True, False):
        try:
            graphs.append(_Tracer(mode).trace(ghost))
            graphs[-1].lint()
        except Exception as error:
            raise _untraceable(error) from error
    if str(graphs[0]) != str(graphs[1]):
        raise Untraceable("its forward is not one graph in train and in eval mode")
    return graphs[0]


def _states(module: nn.Module, nodes: tuple[fx.Node, ...]) -> tuple[frozenset[str], ...]:
    """A tensor read by get_attr counts where it is used: that is the side of a cut it belongs to."""
    names = {id(tensor): name for name, tensor in chain(module.named_parameters(), module.named_buffers())}
    states = []
    for node in nodes:
        sources = [str(source.target) for source in node.all_input_nodes if source.op == "get_attr"]
        read = [_attribute(module, source) for source in sources if source != "training"]
        if node.op == "call_module":
            layer = module.get_submodule(str(node.target))
            read += [*layer.parameters(), *layer.buffers()]
        if any(id(tensor) not in names for tensor in read):
            raise Untraceable("its forward uses a tensor that is neither a parameter nor a buffer")
        states.append(frozenset(names[id(tensor)] for tensor in read))
    return tuple(states)


def _attribute(module: nn.Module, path: str) -> Tensor | None:
    owner, _, attribute = path.rpartition(".")
    return getattr(module.get_submodule(owner), attribute, None)


class _Shapes(fx.Interpreter):
    """Runs a graph and keeps every tensor with its version, which counts the writes to it and to its views."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module, garbage_collect_values=False)
        self.tensors: dict[fx.Node, tuple[Tensor, int]] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, Tensor):
            self.tensors[n] = (result, result._version)
        return result


def _stable_tensors(ghost: nn.Module, graph: fx.Graph, image_size: int) -> dict[fx.Node, Tensor]:
    """The tensor of each node, without those that a later node writes to in place."""
    shapes = _Shapes(fx.GraphModule(ghost, graph))
    shapes.module.eval()
    try:
        with torch.no_grad():
            shapes.run(torch.empty(1, 3, image_size, image_size, device="meta"))
    except Exception as error:  # a layer that needs numbers
        raise _untraceable(error) from error
    return {node: tensor for node, (tensor, version) in shapes.tensors.items() if tensor._version == version}


def _untraceable(error: Exception) -> Untraceable:
    return Untraceable(f"{type(error).__name__}: {str(error).partition(chr(10))[0]}")


def channels_last(shape: tuple[int, ...]) -> bool:
    """Whether an activation of this shape is NHWC: the square is there."""
    return len(shape) == 4 and shape[1] == shape[2] != shape[3]


def _resolution(tensor: Tensor) -> tuple[int, ...]:
    """Of NCHW, or of NHWC where the square is there."""
    shape = tuple(tensor.shape)
    if channels_last(shape):
        return shape[1:3]
    return shape[2:] or (1, 1)


def _blocks(module: nn.Module, node: fx.Node) -> set[str]:
    """Paths of the modules whose forward the node is part of, nn.Sequential aside."""
    paths = {path for path, _ in node.meta.get("nn_module_stack", {}).values()}
    return {path for path in paths if not isinstance(module.get_submodule(path), nn.Sequential)}


def _owners(nodes: tuple[fx.Node, ...], states: tuple[frozenset[str], ...]) -> set[int]:
    """Indices after which no cut may be: some parameter, buffer or layer is used there and again later."""
    used = defaultdict(list)
    for index, (node, names) in enumerate(zip(nodes, states, strict=True)):
        for name in names | ({str(node.target)} if node.op == "call_module" else set()):
            used[name].append(index)
    return {index for at in used.values() for index in range(at[0], at[-1])}


def _lone(nodes: tuple[fx.Node, ...], forbidden: set[int]) -> Iterator[int]:
    """Indices of nodes whose value is the only one alive after them, the input and the output aside."""
    position = {node: index for index, node in enumerate(nodes)}
    last_use = [max((position[user] for user in node.users), default=-1) for node in nodes]
    alive: set[int] = set()
    for index, node in enumerate(nodes):
        alive = {other for other in alive if last_use[other] > index}
        if node.op != "get_attr" and last_use[index] > index:
            alive.add(index)
        if alive == {index} and node.op != "placeholder" and index not in forbidden:
            yield index
