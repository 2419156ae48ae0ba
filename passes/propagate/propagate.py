"""propagate: from the stated layouts to a layout for every tensor.

On the dimension graph a dim of a value is joined to a dim of another by a shared factor of the op
between them. Layouts flow along these joints in four phases, each to a fixed point of topological
sweeps: claims outward; inputs and values; outer factors of contractions; and what is left, chosen
by bytes. Tables, which depend on no parameter and no input, are laid out last. Stated tensors and
placed dims never change. Invariants after the pass:

- a stated dim has its stated layout;
- an op carries an axis on at most one factor (or on linked factors);
- on a model axis, a contraction that reads a parameter stated on it splits that dim or nothing;
- on a data axis no parameter's layout has flowed anywhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from shardlang.ir.graph import ShardGraph
from shardlang.passes.invariants.invariant import Invariant
from shardlang.passes.invariants.shardings import one_factor_per_axis, statements_kept
from shardlang.passes.propagate.align_units import units_whole
from shardlang.passes.propagate.choose import choose
from shardlang.passes.propagate.flow import Flow, carried, outer
from shardlang.passes.propagate.sweep import Sweep
from shardlang.passes.propagate.tables import lay_out_tables


@dataclass(frozen=True, slots=True)
class Propagate:
    """Lay out every value; see the module for the order and the invariants."""

    name: str = "propagate"
    establishes: ClassVar[tuple[Invariant, ...]] = (one_factor_per_axis, statements_kept)
    retires: ClassVar[tuple[Invariant, ...]] = (units_whole,)

    def run(self, graph: ShardGraph) -> ShardGraph:
        """Run all phases.

        Raises:
            ShardError: two claims on one op disagree.
        """
        flow = Flow(graph)
        model_axes = [axis for axis in graph.mesh.axes if axis not in graph.data_axes]
        flow.state_weights()
        Sweep(flow, carried, graph.mesh.axes, flow.weights).run()
        flow.claim(model_axes)
        Sweep(flow, carried, model_axes).run()
        flow.state_values()
        Sweep(flow, carried, graph.mesh.axes).run()
        outward = Sweep(flow, outer, graph.mesh.axes)
        outward.run()
        for _ in range(len(graph.mesh.axes) + 1):
            changed = choose(flow, outward)
            if not outward.run() and not changed:
                break
        lay_out_tables(graph, flow.tables)
        return graph
