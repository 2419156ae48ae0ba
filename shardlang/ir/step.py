"""The step program: forward and backward in one graph, one text for every device.

Beside aten ops and local functions its nodes call what stands here: a collective is one direction
of a change of layout, and `record` and `pull` are the two directions of an op whose ops are not
written out. A collective that other ops may run beside is a start, which gives a handle, and the
wait for it, which gives what the collective gives.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx

from shardlang.ir.collective import Collective, Kind
from shardlang.ir.leaf import Leaf, Result
from shardlang.ir.mesh import Mesh
from shardlang.ir.views import gives_own_memory


@dataclass(slots=True)
class StepProgram:
    """What every device runs for one forward and backward.

    The graph takes the leaves, then one cotangent per result in `cotangents`, and returns the
    results and then one gradient per leaf in `gradients`.

    Attributes:
        cotangents: the results whose cotangent is given, by name.
        gradients: the leaves whose gradient is returned, by name.
        adjoints: value of the forward program to the node with its whole gradient, by name.
        again: value of the forward to the node of the backward that makes it again, by name.
        wide: the type in which gradients of narrower leaves are reduced.
    """

    mesh: Mesh
    graph: fx.Graph
    leaves: tuple[Leaf, ...]
    results: tuple[Result, ...]
    cotangents: tuple[str, ...]
    gradients: tuple[str, ...]
    adjoints: Mapping[str, str] = field(default_factory=dict)
    again: Mapping[str, str] = field(default_factory=dict)
    wide: torch.dtype | None = None

    @property
    def returned(self) -> tuple[list[fx.Node], list[fx.Node]]:
        """The nodes of the results, and those of the gradients."""
        given: Any = self.graph.output_node().args[0]
        results, gradients = given
        return list(results), list(gradients)


@dataclass(frozen=True, slots=True)
class UpdateProgram:
    """What every device runs after the optimizer has changed its parts of the parameters.

    The graph takes the values of some parameters, then this device's parts of them, gathers the
    parts of all devices and writes them into the values. It returns nothing.

    Attributes:
        names: the parameters, in order.
    """

    mesh: Mesh
    graph: fx.Graph
    names: tuple[str, ...]


def cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    """A value in another type."""
    return x.to(dtype)


def apply_collective(x: Tensor, collective: Collective, groups: Tensor | None = None) -> Tensor:
    """Placeholder target of a collective; `groups` are those of the rows that a route moves."""
    raise AssertionError("a collective has no meaning outside a runtime")


def apply_collectives(
    xs: tuple[Tensor, ...], collectives: tuple[Collective, ...]
) -> tuple[Tensor, ...]:
    """Placeholder target of several collectives of one kind and group, sent as one call."""
    raise AssertionError("a collective has no meaning outside a runtime")


class Stream(str, Enum):
    """What is sent in order; what streams of one group send does not wait for one another."""

    ACTIVATIONS = "activations"
    GATHERS = "gathers"
    """Parameters, which are there before the step begins."""
    GRADIENTS = "gradients"
    """What nothing in the step reads any more."""

    __str__ = str.__str__


def start_collective(x: Tensor, collective: Collective, stream: Stream) -> object:
    """Placeholder target of the start of a collective: a handle, which its wait alone reads."""
    raise AssertionError("a collective has no meaning outside a runtime")


def start_collectives(
    xs: tuple[Tensor, ...], collectives: tuple[Collective, ...], stream: Stream
) -> object:
    """Placeholder target of the start of several collectives that are sent as one call."""
    raise AssertionError("a collective has no meaning outside a runtime")


def wait_collective(started: object) -> object:
    """Placeholder target of a wait: what the collective, or the several of one call, give."""
    raise AssertionError("a collective has no meaning outside a runtime")


STARTS: Mapping[Callable[..., object], Callable[..., object]] = {
    apply_collective: start_collective,
    apply_collectives: start_collectives,
}
"""The start of a collective, by the collective as one call."""


def is_collective(node: fx.Node) -> bool:
    """Whether a node of a step program sends one collective, or several as one call."""
    return node.op == "call_function" and (node.target in STARTS or is_start(node))


def is_start(node: fx.Node) -> bool:
    """Whether a node starts a collective that another node waits for."""
    return node.target in (start_collective, start_collectives)


def is_wait(node: fx.Node) -> bool:
    """Whether a node waits for a collective."""
    return node.target is wait_collective


def started_by(node: fx.Node) -> fx.Node:
    """The start that a wait waits for."""
    (start,) = node.all_input_nodes
    return start


def stream_of(node: fx.Node) -> Stream:
    """The stream in which a collective is sent."""
    if not is_start(node):
        return Stream.ACTIVATIONS
    stream = node.args[2]
    assert isinstance(stream, Stream), f"{node} is sent in no stream"
    return stream


def collectives_of(node: fx.Node) -> list[tuple[fx.Node, Collective]]:
    """(value, collective) of everything that a collective node moves."""
    given: Any = node.args
    values, collectives, *_ = given
    return list(zip(values, collectives, strict=True)) if is_bucket(node) else [given[:2]]


def makes_memory(target: object) -> bool:
    """Whether what an op of a step gives lies in none of its operands."""
    return target is cast or gives_own_memory(target)


def arrives(node: fx.Node) -> bool:
    """Whether nobody else has a value: an op makes it, or a collective brings it of others."""
    if makes_memory(node.target):
        return True
    source = node.args[0] if node.target is operator.getitem else node
    if isinstance(source, fx.Node) and is_wait(source):
        source = started_by(source)
    if not isinstance(source, fx.Node) or not is_collective(source):
        return False
    ways = [collective for _, collective in collectives_of(source)]
    return all(one.sends and one.kind is not Kind.PERMUTE for one in ways)


def is_bucket(node: fx.Node) -> bool:
    """Whether a node makes several collectives as one call."""
    return node.target in (apply_collectives, start_collectives)


def routed_by(node: fx.Node) -> fx.Node | None:
    """The groups of the rows that a collective of a route moves."""
    groups = node.args[2:]
    return groups[0] if groups and isinstance(groups[0], fx.Node) else None


@dataclass(slots=True)
class Record:
    """What autograd holds of an op between its forward and its backward."""

    leaves: list[Tensor]
    ends: list[Tensor]


@dataclass(frozen=True, slots=True)
class Operand:
    """The place of a tensor operand in the arguments of a recorded op."""

    index: int


def record(
    target: Callable[..., object],
    args: Sequence[object],
    kwargs: Mapping[str, object],
    xs: Sequence[Tensor],
    wanted: Sequence[int],
    given: Sequence[int],
) -> tuple[object, ...]:
    """Run an op under autograd.

    Args:
        args: its arguments, `Operand`s in the place of tensors.
        xs: the operands.
        wanted: the operands whose gradients will be asked for.
        given: the results, among the tensors, whose cotangents will be given.

    Returns:
        The results, and last the record that `pull` takes.
    """
    leaves = [x.detach().requires_grad_(i in wanted) for i, x in enumerate(xs)]
    used = pytree.tree_map_only(Operand, lambda o: leaves[o.index], (tuple(args), dict(kwargs)))
    with torch.enable_grad():
        made = target(*used[0], **used[1])
    results = [made] if isinstance(made, Tensor) else list(made)  # type: ignore[call-overload]
    tensors = [r for r in results if isinstance(r, Tensor)]
    kept = Record([leaves[i] for i in wanted], [tensors[i] for i in given])
    return (*(r.detach() if isinstance(r, Tensor) else r for r in results), kept)


def has_records(program: StepProgram) -> bool:
    """Whether the text for all devices leaves out the ops of some op."""
    return any(node.target is record for node in program.graph.nodes)


def pull(kept: Record, cotangents: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
    """The gradients of a recorded op's operands; zeros for one that no gradient reaches."""
    pairs = [
        (end, given)
        for end, given in zip(kept.ends, cotangents, strict=True)
        if given is not None and end.requires_grad
    ]
    found: Sequence[Tensor | None] = [None] * len(kept.leaves)
    if pairs:
        ends, cotangents = zip(*pairs, strict=True)
        found = torch.autograd.grad(
            ends, kept.leaves, cotangents, retain_graph=True, allow_unused=True
        )
    made = zip(found, kept.leaves, strict=True)
    return tuple(torch.zeros_like(x) if g is None else g for g, x in made)
