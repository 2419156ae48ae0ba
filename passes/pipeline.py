"""The pipeline: the one ordered tuple of passes, and the loop that runs it."""

from __future__ import annotations

import time
from typing import Protocol

from shardlang.ir.graph import ShardGraph
from shardlang.passes.align_units import AlignUnits
from shardlang.passes.bind_rules import BindRules
from shardlang.passes.carry_groups import CarryGroups
from shardlang.passes.defer_reductions import DeferReductions
from shardlang.passes.delay_reductions import DelayReductions
from shardlang.passes.fuse_collectives import FuseCollectives
from shardlang.passes.insert_reshards import InsertReshards
from shardlang.passes.localize import Localize
from shardlang.passes.lower import Lower
from shardlang.passes.place_storage import PlaceStorage
from shardlang.passes.propagate import Propagate
from shardlang.passes.record_layouts import RecordLayouts
from shardlang.passes.repeat_heads import RepeatHeads
from shardlang.passes.route_rows import RouteRows
from shardlang.passes.type_gradients import TypeGradients
from shardlang.passes.verify_graph import verify_graph


class Pass(Protocol):
    """A pass: a frozen dataclass whose fields are its options."""

    @property
    def name(self) -> str: ...

    def run(self, graph: ShardGraph) -> ShardGraph: ...


PROPAGATE: tuple[Pass, ...] = (
    RepeatHeads(),
    BindRules(),
    AlignUnits(),
    Propagate(),
    PlaceStorage(),
    RecordLayouts(),
)
REWRITE: tuple[Pass, ...] = (
    Lower(),
    RouteRows(),
    CarryGroups(),
    DeferReductions(),
    DelayReductions(),
    InsertReshards(),
    TypeGradients(),
    FuseCollectives(),
    Localize(),
)
PIPELINE: tuple[Pass, ...] = PROPAGATE + REWRITE


def run_passes(graph: ShardGraph, passes: tuple[Pass, ...] = PIPELINE) -> ShardGraph:
    """Run passes in order; the seconds that each took are left in `graph.notes["seconds"]`."""
    seconds = graph.notes.setdefault("seconds", {})
    for one in passes:
        start = time.perf_counter()
        graph = one.run(graph)
        seconds[one.name] = time.perf_counter() - start
        graph.graph.lint()
        verify_graph(graph, one.name)
    return graph
