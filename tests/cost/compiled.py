"""What one op, compiled as a program of its own, really sends: the messages of all devices."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx

from shardlang.ir.layout import Layout
from shardlang.ir.mesh import Mesh
from shardlang.ir.node import info, tensor_of
from shardlang.ir.program import LocalProgram
from shardlang.ir.reshard import Reshard
from shardlang.ir.rule import Sharding
from shardlang.passes.propagate.flow import Flow
from tests.cost.alone import alone, reshards_in
from tests.cost.sent import busiest_in


def shards(value: fx.Node, layout: Layout, mesh: Mesh) -> list[torch.Tensor]:
    """The shards of a value on all devices."""
    return [
        torch.zeros(layout.local_shape(at), dtype=tensor_of(value).dtype) for at in mesh.coords()
    ]


def sent_forward(program: LocalProgram) -> int:
    """Bytes that the moves of a program really send forward, each on its busiest device."""
    mesh = program.mesh
    return sum(
        busiest_in(reshard.forward, mesh, shards(value, reshard.src, mesh))
        for value, reshard in reshards_in(program)
    )


def sent_backward(value: fx.Node, reshard: Reshard, mesh: Mesh) -> int:
    """Bytes that the moves of one reshard really send backward."""
    if not reshard.differentiable:
        return 0
    return busiest_in(reshard.adjoint, mesh, shards(value, reshard.dst, mesh))


def labelled(reshard: Reshard, src: bool, dst: bool) -> Reshard:
    """The reshard with its whole ends replicated, not invariant."""
    ends = [
        Layout(layout.dims, layout.partial, varying)
        for layout, label in ((reshard.src, src), (reshard.dst, dst))
        for varying in [frozenset(a for a in reshard.axes if label and layout.state(a).whole)]
    ]
    return Reshard(reshard.axes, *ends, reshard.reduce)


def expected_backward(program: LocalProgram) -> float:
    """The same backward, before labels are known: gathers replicated, slices half so.

    The gradient of a whole operand is summed for all its readers together: no op pays for it.
    """
    total = 0.0
    for value, reshard in reshards_in(program):
        if not info(value).differentiable or reshard.kind == "vary":
            continue
        plain = labelled(reshard, False, False)
        if reshard.kind == "all_gather":
            plain = labelled(reshard, False, True)
        elif reshard.kind == "slice":
            total -= 0.5 * sent_backward(value, plain, program.mesh)
        total += sent_backward(value, plain, program.mesh)
    return total


@dataclass(frozen=True, slots=True)
class Found:
    """What a program sends.

    Attributes:
        sent: bytes forward, and backward as far as a price expects them.
        slack: what reductions that do not divide may send more.
        text: the program.
    """

    sent: float
    slack: float
    text: str


def compiled_bytes(flow: Flow, node: fx.Node, sharding: Sharding) -> Found | None:
    """The bytes of an op split so; None where it is lowered, or made to pass a sum on."""
    if sharding.needs_lowering():
        return None
    before = dict(sharding.linear)
    program = alone(flow, node, sharding, train=True)
    if sharding.linear != before:
        return None
    reshards = [reshard for _, reshard in reshards_in(program)]
    sent = sent_forward(program) + expected_backward(program)
    return Found(sent, 0.6 + 8 * sum(s.kind == "all_reduce" for s in reshards), program.text())
