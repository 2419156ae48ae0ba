"""What the steps of a program send, and whether the backward of each happens at all."""

from __future__ import annotations

from collections.abc import Iterable

from torch import fx

from shardlang.cost.ring import sent_bytes
from shardlang.ir.graph import is_step
from shardlang.ir.leaf import ResultKind
from shardlang.ir.node import info, tensor_of
from shardlang.ir.program import LocalProgram, apply_step
from shardlang.ir.reshard import Reshard

Pair = tuple[fx.Node, Reshard]
"""A value, and the step that changes its layout."""


def steps_of(node: fx.Node) -> list[Pair]:
    """(value, step) of every change of layout that a step node makes."""
    values, steps = node.args[:2]
    if node.target is apply_step:
        values, steps = (values,), (steps,)
    assert isinstance(values, (tuple, list)) and isinstance(steps, (tuple, list))
    return list(zip(values, steps, strict=True))


def step_nodes(program: LocalProgram) -> Iterable[fx.Node]:
    """The step nodes, in program order."""
    return (node for node in program.graph.nodes if is_step(node))


def sent_forward(pairs: Iterable[Pair]) -> int:
    """Bytes that the busiest device sends in one forward call of some steps."""
    return sum(sent_bytes(step.forward, tensor_of(value).dtype.itemsize) for value, step in pairs)


def sent_backward(pairs: Iterable[Pair]) -> int:
    """Bytes that the busiest device sends in one backward call of some steps."""
    return sum(sent_bytes(step.adjoint, tensor_of(value).dtype.itemsize) for value, step in pairs)


def seeds_of(program: LocalProgram) -> list[fx.Node]:
    """The results whose gradient is given: the loss, or every output where there is none."""
    output = next(iter(reversed(program.graph.nodes)))
    present = [node for node in output.args[0] if node is not None]
    pairs = zip(program.results, present, strict=True)
    return [
        node
        for result, node in pairs
        if (result.name == program.loss if program.loss else result.kind is ResultKind.OUTPUT)
    ]


def with_gradient(program: LocalProgram) -> set[fx.Node]:
    """Every node through whose value a gradient flows in the backward.

    The gradient flows from the seeds against the edges, through values marked `diff`.
    """
    todo = [node for node in seeds_of(program) if info(node).differentiable]
    found = set(todo)
    while todo:
        node = todo.pop()
        for source in node.all_input_nodes:
            if info(source).differentiable and source not in found:
                found.add(source)
                todo.append(source)
    return found
