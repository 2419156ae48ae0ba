"""The step in the types that a spec states, beside the plain model with the same casts.

Numbers of few digits do not agree to the last one: devices add in another order. So what counts is
how far each side is from float64. A device may be as far as a few times what the plain model is, or
as a few units in the last place. What it sends must have the type that is stated of it.
"""

from __future__ import annotations

import math
from dataclasses import replace

from torch import Tensor, fx

from shardlang.capture import Captured, raised_dtype
from shardlang.compiler.build import Statements, build_graph
from shardlang.ir.node import info
from shardlang.ir.precision import OWN_TYPES
from shardlang.passes.pipeline import run_passes
from shardlang.passes.rewrite.localize import to_program
from shardlang.proof.accumulated import Along, SimulatedAccumulation
from shardlang.proof.compare import LARGEST, Simulated, difference, largest, scale_of
from shardlang.proof.conditioning import MARGIN, Conditioning, Rounding, spacing
from shardlang.proof.distance import gap, is_finite
from shardlang.proof.draws import with_program_draws
from shardlang.proof.reference import Reference
from shardlang.runtime.simulate import PerDevice

TIMES, PLACES = 4.0, 8.0
"""How many times the plain model's own rounding a difference may be, and how many spacings."""

SMALLER = 16.0
"""By how much a factor of the loss is made smaller that lets gradients overflow."""


def compare_typed(
    captured: Captured,
    statements: Statements,
    reference: Reference,
    along: Along | None,
) -> dict[str, float] | None:
    """How much of what is allowed the loss and every gradient differ, on the worst device.

    Args:
        reference: in float64.
        along: how the step of several microbatches is computed.

    Returns:
        None where the spec states nothing of types.

    Raises:
        DeviceFault: an op fails on a device.
    """
    stated = statements.step.precision
    if stated == OWN_TYPES:
        return None
    if along is not None:
        captured, statements = along.captured, along.statements
    program = to_program(run_passes(build_graph(captured, statements)))
    drawn, _ = with_program_draws(captured.graph, program)
    plain = _plain(reference, drawn, stated.loss_scale.first if stated.loss_scale else 1.0)
    types = _Types()
    if along is None:
        run: Simulated | SimulatedAccumulation = Simulated(program, plain, types)
    else:
        run = SimulatedAccumulation(program, plain, along.schedule)
    layouts = {leaf.name: leaf.layout for leaf in program.leaves}
    eps, top, scale = _eps(captured), largest(reference.gradients), plain.setting.scale
    found = dict.fromkeys(types.wrong, math.inf)
    for name, want in reference.gradients.items():
        mine, other = run.gradients.get(name), plain.gradients.get(name)
        if want is None or mine is None or other is None:
            continue
        own = gap(_wide(other) / scale, want) / scale_of(want, top)
        shards = [_wide(shard) / scale for shard in mine]
        error = difference(shards, want, layouts[name], run.coords, top)
        found[name] = error / max(TIMES * own, PLACES * eps)
        if found[name] > 1.0:
            found[name] = _of_rounding(reference, name, error, top) or found[name]
    return found


def _of_rounding(reference: Reference, name: str, error: float, top: float) -> float | None:
    """How much of what rounding makes of a gradient that is zero but for it an error is.

    By how much the plain model rounds such a gradient is chance, and says little of devices.

    Returns:
        None where the gradient is not zero, or the error is larger.
    """

    def how(_: str, mine: Tensor, want: Tensor) -> float:
        return gap(mine, want) / scale_of(want, top)

    measured = Conditioning(reference, Rounding.own(reference), (how, how), LARGEST)
    why = measured.explain(name, error, backward=True)
    return error / (MARGIN * why.change) if why is not None and why.kind == "zero" else None


def _wide(value: Tensor) -> Tensor:
    """A gradient in the type of the reference."""
    return value.to(raised_dtype(value.dtype))


class _Types:
    """Watches what is sent.

    Attributes:
        wrong: the collectives that move another type than is stated of them.
    """

    def __init__(self) -> None:
        self.wrong: list[str] = []

    def __call__(self, node: fx.Node, made: PerDevice) -> None:
        stated, first = info(node).dtype, made[0]
        values = first if isinstance(first, (tuple, list)) else [first]
        tensors = [x for x in values if isinstance(x, Tensor)]
        if stated is not None and tensors and all(x.dtype != stated for x in tensors):
            self.wrong.append(node.name)


def _plain(reference: Reference, graph: fx.Graph, scale: float) -> Reference:
    """The plain model at its own types, its loss times the largest factor that does not overflow.

    Where gradients are not finite for another reason, the factor is 1.
    """
    captured = reference.captured
    values = {leaf.name: reference.values[leaf.name].to(leaf.dtype) for leaf in captured.leaves}
    while True:
        setting = replace(reference.setting.of(graph, values), scale=scale)
        made = Reference(setting)
        finite = all(x is None or is_finite(x) for x in made.gradients.values())
        if finite or scale == 1.0:
            return made
        scale = max(scale / SMALLER, 1.0)


def _eps(captured: Captured) -> float:
    """The largest spacing of numbers on the way."""
    return max(map(spacing, captured.graph.nodes), default=0.0)
