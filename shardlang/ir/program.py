"""The result of the passes: one program text for every device, and where its tensors lie."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

from torch import fx

from shardlang.ir.graph import GraphInfo
from shardlang.ir.leaf import Leaf, Result
from shardlang.ir.mesh import Axis, Mesh
from shardlang.ir.reshard import apply_step, apply_steps
from shardlang.ir.text import graph_text

__all__ = ["LocalProgram", "apply_step", "apply_steps"]


@dataclass(slots=True)
class LocalProgram:
    """The program that every device runs.

    Nodes of `graph` are aten ops on local tensors whose arguments may hold `Here` objects, calls of
    local functions, and step nodes (`apply_step`, `apply_steps`). Every node has a `NodeInfo`.
    """

    mesh: Mesh
    graph: fx.Graph
    leaves: tuple[Leaf, ...]
    results: tuple[Result, ...]
    loss: str | None = None
    data_axes: frozenset[Axis] = frozenset()
    info: GraphInfo = field(default_factory=GraphInfo)

    def text(self) -> str:
        """The program as text, the same on every device."""
        names = {leaf.node: leaf.name for leaf in self.leaves}
        return f"mesh {self.mesh}\n{graph_text(self.graph, names)}"

    def fingerprint(self) -> str:
        """A hash of the program text, compared across ranks before the first collective."""
        return hashlib.sha256(self.text().encode()).hexdigest()
