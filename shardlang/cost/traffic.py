"""What the two directions of a step send, and whether the backward one happens at all.

The ring formulas are those of `shardlang.ir.steps.sent_bytes`; the backward of an exchange sends
what the forward received.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import fx

from shardlang.ir.graph import is_step
from shardlang.ir.mesh import Axis
from shardlang.ir.program import LocalProgram, apply_step
from shardlang.ir.steps import COMMUNICATING, Move, Step, sent_bytes


def steps_of(node: fx.Node) -> list[tuple[fx.Node, Step]]:
    """(value, step) of every change of layout that a step node makes."""
    values, steps = node.args[:2]
    if node.target is apply_step:
        values, steps = (values,), (steps,)
    assert isinstance(values, (tuple, list)) and isinstance(steps, (tuple, list))
    return list(zip(values, steps, strict=True))


def step_nodes(program: LocalProgram) -> Iterable[fx.Node]:
    """The step nodes, in program order."""
    return (node for node in program.graph.nodes if is_step(node))


def forward_bytes(step: Step, itemsize: int) -> int:
    """Bytes that the busiest device sends in one forward call."""
    return sent_bytes(step.forward, step, itemsize)


def backward_bytes(step: Step, itemsize: int) -> int:
    """Bytes that the busiest device sends in one backward call."""
    move = step.backward
    if move in (Move.ALL_TO_ALL, Move.PERMUTE):
        return sent_bytes(move, Step(step.axes, step.dst, step.src), itemsize)
    return sent_bytes(move, step, itemsize, step.backward_axes)


def sends(move: Move, axes: tuple[Axis, ...]) -> bool:
    """Whether a move sends anything: it communicates, among more than one device."""
    return move in COMMUNICATING and any(axis.size > 1 for axis in axes)


def seeds_of(program: LocalProgram) -> list[fx.Node]:
    """The results whose gradient is given: the loss, or every output where there is none."""
    output = next(iter(reversed(program.graph.nodes)))
    present = [node for node in output.args[0] if node is not None]
    pairs = zip(program.results, present, strict=True)
    return [
        node
        for result, node in pairs
        if (result.name == program.loss if program.loss else result.kind == "output")
    ]


def with_gradient(program: LocalProgram) -> set[fx.Node]:
    """Every node through whose value a gradient flows in the backward.

    The gradient flows from the seeds against the edges, through values marked `diff`.
    """
    todo = [node for node in seeds_of(program) if node.meta.get("diff")]
    found = set(todo)
    while todo:
        node = todo.pop()
        for source in node.all_input_nodes:
            if source.meta.get("diff") and source not in found:
                found.add(source)
                todo.append(source)
    return found
