"""Which ops of the forward have a backward, and which gradients each is asked for."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from torch import Tensor, fx

from shardlang.ir.graph import is_item, is_reshard, producer, reshards_of
from shardlang.ir.node import info, results_of
from shardlang.ir.program import LocalProgram
from shardlang.ir.values import sources
from shardlang.passes.step.local_calls import Calls, Wants, operands_of
from shardlang.vjp.traced import Traced

Value = tuple[fx.Node, int]
"""A tensor that a node of the forward program gives: the node, and which of its tensors."""


@dataclass(slots=True)
class Step:
    """One node of the forward program on the way back.

    Attributes:
        wants: the gradients that it is asked for.
        traced: its ops; None for a reshard, and for an op that is recorded.
        saved: by node of the trace, its node in the step program.
        kept: the record of an op that is recorded.
    """

    node: fx.Node
    wants: Wants
    traced: Traced | None = None
    saved: dict[fx.Node, fx.Node] = field(default_factory=dict)
    kept: fx.Node | None = None


def steps_back(
    program: LocalProgram, seeds: Sequence[fx.Node], trained: Collection[fx.Node]
) -> dict[fx.Node, Step]:
    """The nodes that a gradient goes through on its way from the seeds to the trained leaves.

    Each op is traced for the gradients that reach it.
    """
    calls, made = Calls(program.mesh), dict[fx.Node, Step]()
    flowing = sources(program.graph, seeds, lambda node: info(node).differentiable)
    asked: set[Value] = {value_of(seed) for seed in seeds}
    for node in reversed(program.graph.nodes):
        if node.op != "call_function" or is_item(node):
            continue
        given = tuple(i for i in range(_tensors(node)) if (node, i) in asked)
        wanted = _wanted(node, given, flowing, trained) if given else ()
        if not wanted:
            continue
        step = Step(node, Wants(wanted, given))
        if not is_reshard(node):
            step.traced = calls.of(node, step.wants)
        reached = [i for i in wanted if step.traced is None or step.traced.gradients[i] is not None]
        if reached:
            made[node] = step
            operands = _read(node)
            asked |= {value_of(operands[i]) for i in reached}
    return made


def _wanted(
    node: fx.Node, given: Sequence[int], flowing: Collection[fx.Node], trained: Collection[fx.Node]
) -> tuple[int, ...]:
    """The operands of a node whose gradients are asked for."""
    leads = [
        info(n).differentiable and n in (trained if n.op == "placeholder" else flowing)
        for n in _read(node)
    ]
    wanted = tuple(i for i, lead in enumerate(leads) if lead)
    if not is_reshard(node):
        return wanted
    pairs = reshards_of(node)
    return tuple(i for i in wanted if i in given and pairs[i][1].differentiable)


def is_bundle(node: fx.Node) -> bool:
    """Whether a reshard node makes several changes as one call."""
    return isinstance(node.args[0], (tuple, list))


def _read(node: fx.Node) -> list[fx.Node]:
    """The values that may get a gradient through a node: not the groups of a route."""
    return [x for x, _ in reshards_of(node)] if is_reshard(node) else operands_of(node)


def value_of(node: fx.Node) -> Value:
    return producer(node) if is_item(node) and not is_reshard(node) else (node, 0)


def places_of(node: fx.Node) -> list[int]:
    """Where among the results of a node its tensors stand."""
    value = info(node).value
    results = value if isinstance(value, (list, tuple)) else [value]
    return [i for i, one in enumerate(results) if isinstance(one, Tensor)]


def _tensors(node: fx.Node) -> int:
    return len(reshards_of(node)) if is_reshard(node) else len(results_of(info(node).value))
