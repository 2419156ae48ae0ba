"""Giving an exported graph the model's own names."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import fx, nn
from torch.export.graph_signature import InputKind

from shardlang.capture.deferred import all_names, persistent_names
from shardlang.capture.errors import CaptureError
from shardlang.capture.mark import MARK
from shardlang.capture.source import InputSpec
from shardlang.capture.stacks import model_frame
from shardlang.ir.compat import FakeTensor, OpOverload, forget_constant
from shardlang.ir.layout import Layout
from shardlang.ir.leaf import Leaf, LeafKind, Result, ResultKind, ValueKey
from shardlang.ir.node import NodeInfo, info, returned_nodes, set_info, tensor_of
from shardlang.ir.rewriter import Rewriter
from shardlang.passes.normalize.writes import written_leaf

PREFIX = "model_"
"""What the exported wrapper calls the model."""

_KINDS = {
    InputKind.PARAMETER: LeafKind.PARAM,
    InputKind.BUFFER: LeafKind.BUFFER,
    InputKind.CONSTANT_TENSOR: LeafKind.CONSTANT,
    InputKind.USER_INPUT: LeafKind.INPUT,
}
_PLACEHOLDER_PREFIX = {
    LeafKind.PARAM: "p_", LeafKind.BUFFER: "b_", LeafKind.CONSTANT: "c_", LeafKind.INPUT: "",
}  # fmt: skip


def strip_prefix(name: str) -> str:
    """A name in the wrapper as the model knows it, without the count of repeated calls."""
    name = re.sub(r"@\d+", "", name)
    return "" if name == PREFIX else name.removeprefix(f"{PREFIX}.")


def annotate(graph: fx.Graph) -> None:
    """Give every node its record, from what export noted of it."""
    for node in graph.nodes:
        stack = list((node.meta.get("nn_module_stack") or {}).values())
        module = strip_prefix(stack[-1][0]) if stack else ""
        source = model_frame(node.meta.get("stack_trace") or "")
        set_info(node, NodeInfo(node.meta.get("val"), module, source))


def bind_leaves(
    program: torch.export.ExportedProgram, model: nn.Module, inputs: Mapping[str, InputSpec]
) -> list[Leaf]:
    """One leaf per placeholder of the exported graph; tied tensors are merged in the graph."""
    groups = all_names(model)
    persistent = persistent_names(model)
    graph = program.graph_module.graph
    remaining = iter(inputs)
    first: dict[str, fx.Node] = {}
    leaves = []
    nodes = graph.find_nodes(op="placeholder")
    for node, spec in zip(nodes, program.graph_signature.input_specs, strict=True):
        if spec.kind not in _KINDS:
            raise _held_object(node)
        kind = _KINDS[spec.kind]
        name = next(remaining) if kind is LeafKind.INPUT else strip_prefix(spec.target or node.name)
        names = groups.get(name, (name,))
        if names[0] in first:
            Rewriter(graph).replace(node, first[names[0]])
            continue
        first[names[0]] = node
        leaf = _leaf(node, kind, names, model, persistent, inputs)
        forget_constant(info(node).value)
        held = program.constants.get(spec.target or "")
        number = held is not None and held.dim() == 0 and not isinstance(held, FakeTensor)
        constant = held.item() if held is not None and number else None
        set_info(node, replace(info(node), leaf=leaf, module=_owner(leaf), constant=constant))
        leaves.append(leaf)
    return leaves


def _held_object(node: fx.Node) -> CaptureError:
    """The error for an object that is not a tensor and that an operator takes."""
    source = next((info(user).source for user in node.users), "")
    held = node.meta["val"]
    if "Generator" in getattr(held, "class_fqn", ""):
        return CaptureError(
            "SH0358",
            "the model draws from a generator of its own, whose state the traced program has not",
            help="leave `generator` out: all ranks draw from the global generator, seeded alike",
            source=source,
        )
    return CaptureError(
        "SH0358",
        f"the model hands `{held.class_fqn}`, an object that is not a tensor, to an op",
        help="give the op tensors and numbers",
        source=source,
    )


def _leaf(
    node: fx.Node,
    kind: LeafKind,
    names: tuple[str, ...],
    model: nn.Module,
    persistent: frozenset[str],
    inputs: Mapping[str, InputSpec],
) -> Leaf:
    """The leaf for one placeholder."""
    fake = tensor_of(node)
    trainable = kind is LeafKind.PARAM and model.get_parameter(names[0]).requires_grad
    if kind is LeafKind.INPUT:
        trainable = inputs[names[0]].differentiable
    return Leaf(
        name=names[0],
        kind=kind,
        node=node.name,
        dtype=fake.dtype,
        layout=Layout.whole(fake.shape),
        trainable=trainable,
        aliases=names[1:],
        persistent=kind is not LeafKind.BUFFER or any(name in persistent for name in names),
    )


def _owner(leaf: Leaf) -> str:
    """The module that holds a parameter or buffer."""
    return leaf.name.rpartition(".")[0] if leaf.kind is not LeafKind.INPUT else ""


def is_outside_state(leaf: Leaf) -> bool:
    """Whether a leaf's value is in no state dict and no input."""
    return leaf.kind is LeafKind.CONSTANT or (leaf.kind is LeafKind.BUFFER and not leaf.persistent)


@dataclass(slots=True)
class NamedGraph:
    """The final graph with everything that refers to its nodes."""

    graph: fx.Graph = field(default_factory=fx.Graph)
    leaves: tuple[Leaf, ...] = ()
    results: tuple[Result, ...] = ()
    values: dict[ValueKey, fx.Node] = field(default_factory=dict)
    repeats: dict[ValueKey, tuple[fx.Node, ...]] = field(default_factory=dict)


def name_graph(
    graph: fx.Graph, leaves: Sequence[Leaf], final: dict[fx.Node, fx.Node], outputs: Sequence[str]
) -> NamedGraph:
    """Copy a normalized graph under the model's names, and turn marks into `values`.

    Raises SH0357 if the program writes an input, a parameter or a constant.
    """
    named = NamedGraph()
    of_node = {leaf.node: leaf for leaf in leaves}
    env: dict[fx.Node, fx.Node] = {}
    kept: list[Leaf] = []
    given = {*final, *final.values()}
    for node in graph.nodes:
        if node.op == "placeholder":
            leaf = of_node[node.name]
            if node.users or node in given or not is_outside_state(leaf):
                env[node] = _placeholder(named.graph, node, leaf)
                kept.append(replace(leaf, node=env[node].name))
        elif node.target is MARK:
            _record(named, env[node.args[0]], node.args[1:])
        elif node.op == "call_function":
            env[node] = _copied(named.graph, node, env)
    written = {of_node[node.name]: env[value] for node, value in final.items()}
    _refuse_written(written)
    results = [env[node] for node in returned_nodes(graph)]
    output = named.graph.output((*results, *written.values()))
    set_info(output, NodeInfo([tensor_of(n) for n in output.all_input_nodes]))
    named.results = (
        *(_result(name, ResultKind.OUTPUT, n) for name, n in zip(outputs, results, strict=True)),
        *(_result(leaf.name, ResultKind.MUTATION, n) for leaf, n in written.items()),
    )
    named.leaves = tuple(kept)
    _drop_dead(named)
    return named


def _result(name: str, kind: ResultKind, node: fx.Node) -> Result:
    """The result for one element of the output tuple."""
    value = tensor_of(node)
    return Result(name, kind, value.dtype, Layout.whole(value.shape))


def _placeholder(graph: fx.Graph, node: fx.Node, leaf: Leaf) -> fx.Node:
    """A placeholder named after its leaf."""
    readable = re.sub(r"\W+", "_", leaf.name)
    new = graph.placeholder(_PLACEHOLDER_PREFIX[leaf.kind] + readable)
    set_info(new, NodeInfo(info(node).value, info(node).module))
    return new


def _copied(graph: fx.Graph, node: fx.Node, env: dict[fx.Node, fx.Node]) -> fx.Node:
    """A call with only that in its record on which later stages may rely."""
    args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: env[n])
    target = node.target
    assert callable(target)
    packet = target.overloadpacket if isinstance(target, OpOverload) else target
    name = packet.__name__.strip("_")
    known = info(node)
    record = NodeInfo(known.value, known.module, known.source)
    return Rewriter(graph).add(target, args, kwargs, record=record, name=name)


def _record(named: NamedGraph, value: fx.Node, key: ValueKey) -> None:
    """Record a mark; the later calls of a module that is called repeatedly go to `repeats`."""
    if key in named.values:
        named.repeats[key] = (*named.repeats.get(key, ()), value)
    else:
        named.values[key] = value


def _refuse_written(written: dict[Leaf, fx.Node]) -> None:
    """Only buffers may change."""
    for leaf, value in written.items():
        if leaf.kind is not LeafKind.BUFFER:
            error = written_leaf(leaf.kind, leaf.name, info(value).source)
            raise CaptureError(error.code, error.message, help=error.help, source=error.source)


def _drop_dead(named: NamedGraph) -> None:
    """Remove what only marks used, from the graph and from the values."""
    named.graph.eliminate_dead_code()
    alive = set(named.graph.nodes)
    named.values = {key: node for key, node in named.values.items() if node in alive}
    named.repeats = {
        key: tuple(n for n in nodes if n in alive) for key, nodes in named.repeats.items()
    }
    named.graph.lint()
