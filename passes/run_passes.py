"""What a pass is, and the loop that runs passes and checks what holds between them."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import ClassVar, Protocol

from shardlang.ir.graph import ShardGraph
from shardlang.passes.invariants.invariant import Invariant, Verifier


class Pass(Protocol):
    """A pass: a frozen dataclass whose fields are its options."""

    establishes: ClassVar[tuple[Invariant, ...]]
    """Invariants that hold after the pass."""
    retires: ClassVar[tuple[Invariant, ...]]
    """Invariants of earlier passes that need not hold any more."""

    @property
    def name(self) -> str: ...

    def run(self, graph: ShardGraph) -> ShardGraph: ...


Seen = Callable[[str, ShardGraph], None]
"""What is shown the graph after every pass, by the name of the pass."""


def run_in_order(
    graph: ShardGraph,
    passes: tuple[Pass, ...],
    base: tuple[Invariant, ...],
    seen: Seen | None = None,
) -> ShardGraph:
    """Run passes in order; the seconds that each took are left in `graph.info.seconds`.

    Args:
        base: what holds from the beginning to the end.
        seen: looks at the graph after every pass.

    Raises:
        InvariantError: something does not hold after a pass.
    """
    seconds = graph.info.seconds
    verifier = Verifier()
    verifier.passed(graph, "capture", base)
    for one in passes:
        start = time.perf_counter()
        graph = one.run(graph)
        seconds[one.name] = time.perf_counter() - start
        verifier.passed(graph, one.name, one.establishes, one.retires)
        if seen is not None:
            seen(one.name, graph)
    return graph
