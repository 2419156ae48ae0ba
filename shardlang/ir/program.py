"""The result of the passes: one program text for every device, and where its tensors lie."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import torch
from torch import fx

from shardlang.ir.graph import GraphInfo
from shardlang.ir.layout import Layout
from shardlang.ir.mesh import Axis, Mesh
from shardlang.ir.reshard import apply_step, apply_steps
from shardlang.ir.text import graph_text

__all__ = ["LeafPlacement", "LocalProgram", "ResultPlacement", "apply_step", "apply_steps"]


@dataclass(frozen=True, slots=True)
class LeafPlacement:
    """A placeholder of the program.

    Attributes:
        name: the parameter's, buffer's or input's own name.
        kind: `param`, `buffer`, `input` or `constant`.
        node: the placeholder's fx name.
        layout: its layout at rest (global shape included).
        aliases: other names of a tied parameter.
    """

    name: str
    kind: str
    node: str
    dtype: torch.dtype
    trainable: bool
    layout: Layout
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ResultPlacement:
    """An element of the program's output tuple: kind `output`, or `mutation` of a buffer."""

    name: str
    kind: str
    dtype: torch.dtype
    layout: Layout


@dataclass(slots=True)
class LocalProgram:
    """The program that every device runs.

    Nodes of `graph` are aten ops on local tensors whose arguments may hold `Here` objects, calls of
    local functions, and step nodes (`apply_step`, `apply_steps`). Every node has a `NodeInfo`.
    """

    mesh: Mesh
    graph: fx.Graph
    leaves: tuple[LeafPlacement, ...]
    results: tuple[ResultPlacement, ...]
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
