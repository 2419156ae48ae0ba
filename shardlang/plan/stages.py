"""The plan of a pipeline: its stages, what goes between them, its bubble and its memory."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

from torch import fx

from shardlang.compiler.driver import Compiled
from shardlang.compiler.pipelined import Pipelined
from shardlang.cost.effects import TensorType
from shardlang.cost.pipeline.in_flight import in_flight
from shardlang.cost.pipeline.memory import rank_memories
from shardlang.cost.pipeline.sent import sent_types
from shardlang.cost.pipeline.shipments import shipments_of
from shardlang.cost.pipeline.work import StageWork, durations, stage_work
from shardlang.cost.speeds import Speeds
from shardlang.cost.timeline import Shipment, Timeline, timeline
from shardlang.ir.leaf import Leaf, LeafKind
from shardlang.ir.node import info
from shardlang.ir.pipeline.stage import StageProgram
from shardlang.ir.step import collectives_of, is_collective
from shardlang.passes.step.update_cost import update_cost
from shardlang.plan.flights import computes
from shardlang.plan.moments import Memory
from shardlang.plan.names import Names
from shardlang.plan.rank_memory import rank_memory
from shardlang.plan.stage_types import Bubble, PipelinePlan, StageRow
from shardlang.plan.transfers import transfers_of
from shardlang.plan.values import module_values


def pipeline_plan(compiled: Compiled, made: Pipelined) -> PipelinePlan:
    """What the stages of a compiled spec cost."""
    stated = compiled.spec.pipeline
    assert stated is not None, "the spec states a pipeline"
    speeds, types = _speeds(compiled), _types(made)
    work = stage_work(made.step, speeds)
    values = module_values(made.along.captured, made.along.graph)
    names = {value.node: name for name, value in reversed(values.items())}
    if all(stage.seconds is None for stage in work):
        speeds = None
    spans = timeline(made.schedule, durations(work), _shipments(made, types, speeds))
    return PipelinePlan(
        made.axis.name,
        stated.schedule,
        made.schedule,
        tuple(_stages(made, work)),
        transfers_of(made, Names.of(made.along.program, names), types),
        in_flight(made.schedule),
        dict(_stages_of(made)),
        spans,
        _bubble("" if stated.actions is not None else stated.schedule, spans),
        functools.cache(functools.partial(_memories, made, compiled)),
        "flops" if speeds is None else "s",
        () if speeds is None else tuple(_without_link(made)),
    )


def _speeds(compiled: Compiled) -> Speeds | None:
    """What a device does in a second, as `cluster` states it; None where it states nothing."""
    peaks = {one.dtype: one.flops_per_s for one in compiled.spec.peaks}
    return Speeds(peaks, compiled.program.mesh) if peaks else None


def _shipments(
    made: Pipelined, types: Mapping[str, TensorType], speeds: Speeds | None
) -> Iterable[Shipment]:
    """The transfers that take time."""
    if speeds is None:
        return ()
    return shipments_of(made.step, made.schedule, made.axis, types, speeds)


def _without_link(made: Pipelined) -> Iterator[str]:
    """The axes over which actions send something, and of which no link is stated."""
    nodes = (node for stage in made.step.stages for node in stage.step.graph.nodes)
    ways = (c for node in nodes if is_collective(node) for _, c in collectives_of(node) if c.sends)
    used = dict.fromkeys([made.axis, *(axis for way in ways for axis in way.axes)])
    yield from dict.fromkeys(axis.stretch[0] for axis in used if axis.link is None)


def _types(made: Pipelined) -> Mapping[str, TensorType]:
    """How what is sent lies on the first device."""
    first = next(iter(made.step.whole.main.mesh.coords()))
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(sent_types, made.step, first).result()


def transfers_in(made: Pipelined) -> Mapping[str, int]:
    """Bytes of what stages give to others, by the name of its node."""
    return {name: of.bytes for name, of in _types(made).items()}


# stages


def _stages(made: Pipelined, work: Iterable[StageWork]) -> Iterator[StageRow]:
    rank_of = made.schedule.rank_of()
    modules = modules_of(made.along.program.graph, len(made.step.stages))
    for stage, its in zip(made.step.stages, work, strict=True):
        params = list(own_parameters(stage))
        sizes = [leaf.at_rest.held() for leaf in params]
        held = sum(n * leaf.dtype.itemsize for n, leaf in zip(sizes, params, strict=True))
        rank = rank_of[stage.number]
        yield StageRow(
            stage.number, rank, modules[stage.number], sum(sizes), held, its.flops, its.seconds
        )


def _stages_of(made: Pipelined) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The stages of every parameter, input and value of a module, by name."""
    found: dict[str, list[int]] = {}
    for stage in made.step.stages:
        for leaf in stage.step.leaves:
            if leaf.kind in (LeafKind.PARAM, LeafKind.INPUT) and leaf.name not in stage.values:
                found.setdefault(leaf.tied or leaf.name, []).append(stage.number)
    yield from ((name, tuple(stages)) for name, stages in found.items())
    at = {node.name: info(node).stage for node in made.along.program.graph.nodes}
    for name, value in module_values(made.along.captured, made.along.graph).items():
        stage_of = at.get(value.node)
        if stage_of is not None:
            yield name, (stage_of,)


def own_parameters(stage: StageProgram) -> Iterator[Leaf]:
    """The parameters that lie in a stage between steps; a tied one lies in its first."""
    for leaf in stage.step.leaves:
        if leaf.kind is LeafKind.PARAM and leaf.tied is None:
            yield leaf


def modules_of(graph: fx.Graph, stages: int) -> list[tuple[str, ...]]:
    """Of every stage, the outermost modules of which it alone computes something.

    Args:
        graph: the forward program, whose ops have stages.
    """
    found: dict[str, set[int]] = {}
    for node in graph.nodes:
        stage = info(node).stage
        if computes(node) and stage is not None:
            for module in _inwards(info(node).module):
                found.setdefault(module, set()).add(stage)
    made: list[list[str]] = [[] for _ in range(stages)]
    for module, numbers in found.items():
        outer = module.rpartition(".")[0]
        if len(numbers) == 1 and len(found.get(outer, ())) != 1:
            made[next(iter(numbers))].append(module)
    return [tuple(names) for names in made]


def _inwards(module: str) -> Iterator[str]:
    parts = module.split(".") if module else []
    for count in range(1, len(parts) + 1):
        yield ".".join(parts[:count])


# bubble


def _bubble(name: str, spans: Timeline) -> Bubble:
    """The bubble of a timeline beside the formula of its schedule."""
    ranks, count = len(spans.schedule.ranks), spans.schedule.microbatches
    virtual = spans.schedule.stages // ranks
    if name in ("gpipe", "1f1b"):
        return Bubble(spans.bubble, (ranks - 1) / count, "(p-1)/m")
    if name == "interleaved_1f1b":
        return Bubble(spans.bubble, (ranks - 1) / (virtual * count), "(p-1)/(v m)")
    if not name:
        return Bubble(spans.bubble, None, "no formula: the schedule is that of a file")
    return Bubble(spans.bubble, None, "no formula: idle time is filled with gradients of weights")


# memory


def _memories(made: Pipelined, compiled: Compiled) -> tuple[Memory, ...]:
    """The memory of every rank on its fullest device."""
    along = made.along.program
    leaves = [_leaves(made, rank) for rank in range(len(made.schedule.ranks))]
    updates = [
        update_cost(
            along,
            [leaf.held_at(made.axis, rank) for leaf in own if leaf.trainable],
            compiled.rule,
            along.step.precision,
        )
        for rank, own in enumerate(leaves)
    ]
    found = rank_memories(made.step, made.schedule, made.order, made.axis, updates)
    return tuple(map(rank_memory, found, leaves, updates))


def _leaves(made: Pipelined, rank: int) -> list[Leaf]:
    """The parameters of a rank, and the buffers and constants that all have."""
    stages = [made.step.stages[number] for number in {a.stage for a in made.schedule.ranks[rank]}]
    params = [leaf for stage in stages for leaf in own_parameters(stage)]
    others = {LeafKind.BUFFER, LeafKind.CONSTANT}
    return [*params, *(leaf for leaf in made.along.program.leaves if leaf.kind in others)]
