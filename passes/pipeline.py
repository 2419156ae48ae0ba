"""The pipeline: the one ordered tuple of passes, and what runs it."""

from __future__ import annotations

from shardlang.ir.graph import ShardGraph
from shardlang.passes.experts.route_rows import RouteRows
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
from shardlang.passes.rewrite.merge_duplicates import MergeDuplicates
from shardlang.passes.rewrite.place_reductions import PlaceReductions
from shardlang.passes.rewrite.type_gradients import TypeGradients
from shardlang.passes.run_passes import Pass, Seen, run_in_order
from shardlang.passes.weigh.weigh import Weigh

__all__ = ["BASE", "PIPELINE", "PROPAGATE", "REWRITE", "Pass", "Seen", "run_passes"]

BASE = (records_complete, statements_valid)
"""What holds from the beginning to the end."""

PROPAGATE: tuple[Pass, ...] = (
    BindRules(),
    AlignUnits(),
    Propagate(),
    Weigh(),
    PlaceStorage(),
    RecordLayouts(),
)
REWRITE: tuple[Pass, ...] = (
    Lower(),
    MergeDuplicates(),
    RouteRows(),
    PlaceReductions(),
    InsertReshards(),
    TypeGradients(),
    FuseCollectives(),
    Localize(),
)
PIPELINE: tuple[Pass, ...] = PROPAGATE + REWRITE


def run_passes(
    graph: ShardGraph, passes: tuple[Pass, ...] = PIPELINE, seen: Seen | None = None
) -> ShardGraph:
    """Run passes of the pipeline in order, from its beginning on; `seen` as in `run_in_order`."""
    return run_in_order(graph, passes, BASE, seen)
