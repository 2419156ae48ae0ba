"""The pipeline: the one ordered tuple of passes, and the loop that runs it."""

from __future__ import annotations

import time
from typing import ClassVar, Protocol

from shardlang.ir.graph import ShardGraph
from shardlang.passes.experts.route_rows import RouteRows
from shardlang.passes.invariants.invariant import Invariant, Verifier
from shardlang.passes.invariants.shardings import statements_valid
from shardlang.passes.invariants.structure import records_complete
from shardlang.passes.propagate.align_units import AlignUnits
from shardlang.passes.propagate.bind_rules import BindRules
from shardlang.passes.propagate.place_storage import PlaceStorage
from shardlang.passes.propagate.propagate import Propagate
from shardlang.passes.propagate.record_layouts import RecordLayouts
from shardlang.passes.rewrite.fuse_collectives import FuseCollectives
from shardlang.passes.rewrite.insert_reshards import InsertReshards
from shardlang.passes.rewrite.localize import Localize
from shardlang.passes.rewrite.lower import Lower
from shardlang.passes.rewrite.place_reductions import PlaceReductions
from shardlang.passes.rewrite.type_gradients import TypeGradients


class Pass(Protocol):
    """A pass: a frozen dataclass whose fields are its options."""

    establishes: ClassVar[tuple[Invariant, ...]]
    """Invariants that hold after the pass."""
    retires: ClassVar[tuple[Invariant, ...]]
    """Invariants of earlier passes that need not hold any more."""

    @property
    def name(self) -> str: ...

    def run(self, graph: ShardGraph) -> ShardGraph: ...


BASE = (records_complete, statements_valid)
"""What holds from the beginning to the end."""

PROPAGATE: tuple[Pass, ...] = (
    BindRules(),
    AlignUnits(),
    Propagate(),
    PlaceStorage(),
    RecordLayouts(),
)
REWRITE: tuple[Pass, ...] = (
    Lower(),
    RouteRows(),
    PlaceReductions(),
    InsertReshards(),
    TypeGradients(),
    FuseCollectives(),
    Localize(),
)
PIPELINE: tuple[Pass, ...] = PROPAGATE + REWRITE


def run_passes(graph: ShardGraph, passes: tuple[Pass, ...] = PIPELINE) -> ShardGraph:
    """Run passes in order; the seconds that each took are left in `graph.info.seconds`."""
    seconds = graph.info.seconds
    verifier = Verifier()
    verifier.passed(graph, "capture", BASE)
    for one in passes:
        start = time.perf_counter()
        graph = one.run(graph)
        seconds[one.name] = time.perf_counter() - start
        verifier.passed(graph, one.name, one.establishes, one.retires)
    return graph
