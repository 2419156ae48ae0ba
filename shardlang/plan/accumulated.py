"""The collectives of a step of several microbatches: those of each, and those of all together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from torch import fx

from shardlang.cost.bound import least_bytes
from shardlang.cost.ring import sent_bytes
from shardlang.ir.accumulated import AccumulatedStep
from shardlang.ir.collective import Collective, Kind
from shardlang.ir.mesh import Axis, joined
from shardlang.ir.node import info
from shardlang.ir.pipeline.staged import StagedStep
from shardlang.ir.step import StepProgram, collectives_of, is_collective
from shardlang.plan.calls import Part, Rows
from shardlang.plan.flights import flights_of
from shardlang.plan.moments import Phase
from shardlang.plan.shares import Shares
from shardlang.plan.types import CollectiveRow


def accumulated_parts(step: AccumulatedStep, rows: Rows) -> list[Part]:
    """The calls of all microbatches, and those of all together, in the order of the run.

    Args:
        rows: those of the program along the microbatches.
    """
    times, (each, once) = step.axis.size, _when(step)
    early = "a total that the microbatches need first"
    return [
        ([*_rows(rows, step.early.graph.nodes, Phase.FORWARD, times, f"{early}, {each}")], times),
        ([*_of_microbatch(rows, step.main, times, each)], times),
        ([*_rows(rows, step.finish.graph.nodes, Phase.FORWARD, 1, once)], 1),
        ([*_rows(rows, step.reduce.graph.nodes, Phase.BACKWARD, 1, once)], 1),
    ]


def pipeline_parts(step: StagedStep, rows: Rows, axis: Axis) -> list[Part]:
    """The calls of every stage: of each microbatch, and of all together.

    In which order a device makes those of its stages, the schedule says.

    Args:
        axis: of the pipeline.
    """
    whole = step.whole
    before, _, finish, _ = accumulated_parts(whole, rows)
    each, once = _when(whole)
    shares, parts = Shares(step, axis, once), [before]
    for stage in step.stages:
        made = _of_microbatch(rows, stage.step, whole.axis.size, each)
        parts.append(([replace(row, stage=stage.number) for row in made], whole.axis.size))
    parts += [(list(shares.for_loss()), 1), finish, (list(shares.of_buffers()), 1)]
    for number, piece in enumerate(step.reduces):
        made = _rows(rows, piece.graph.nodes, Phase.BACKWARD, 1, once)
        parts.append(([replace(row, stage=number) for row in made], 1))
    parts.append((list(shares.of_gradients()), 1))
    return parts


def _when(step: AccumulatedStep) -> tuple[str, str]:
    times = step.axis.size
    return f"for each of {times} microbatches", f"once for all {times} microbatches"


def _of_microbatch(rows: Rows, step: StepProgram, times: int, each: str) -> Iterator[CollectiveRow]:
    """Forward and backward."""
    for phase, backward in ((Phase.FORWARD, False), (Phase.BACKWARD, True)):
        nodes = [node for node in step.graph.nodes if info(node).backward is backward]
        yield from _rows(rows, nodes, phase, times, each)


def _rows(
    rows: Rows, nodes: Iterable[fx.Node], phase: Phase, times: int, when: str
) -> Iterator[CollectiveRow]:
    nodes = list(nodes)
    flights = flights_of(nodes)
    for node in nodes:
        pairs = collectives_of(node) if is_collective(node) else []
        pairs = [(x, c) for x, c in pairs if c.sends]
        if not pairs:
            continue
        first, dtype, said = pairs[0][1], info(node).dtype, rows.explained(node, phase)
        assert dtype is not None and said is not None, f"nothing is known of what {node} moves"
        yield CollectiveRow(
            op=first.op,
            axes=tuple(axis.name for axis in joined(first.axes)),
            phase=phase,
            module=said.module,
            tensors=said.tensors,
            count=times,
            bytes=times * sum(sent_bytes(c, dtype.itemsize) for _, c in pairs),
            bound=times * sum(_least(c, dtype.itemsize) for _, c in pairs),
            reason=f"{said.reason}; {when}",
            node=node.name,
            full_gather=first.kind is Kind.ALL_GATHER and info(said.node).full_gather is not None,
            flight=flights[node].ends if node in flights else None,
        )


def _least(collective: Collective, itemsize: int) -> int:
    sent = sent_bytes(collective, itemsize)
    return min(sent, least_bytes(collective.src, collective.dst, itemsize))
