"""The graph of a step while it is written: every node with its record."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import fx
from torch.fx.node import Target

from shardlang.ir.arguments import Args, Kwargs
from shardlang.ir.graph import op_name, reshards_of
from shardlang.ir.layout import Layout
from shardlang.ir.node import Moves, NodeInfo, info, set_info, tensor_of
from shardlang.ir.rewriter import Rewriter
from shardlang.ir.step import cast
from shardlang.ir.views import gives_view
from shardlang.passes.step.dropouts import draws
from shardlang.passes.step.steps_back import Value, places_of


class StepWriter:
    """Writes the nodes of a step program, those of one node of the forward program after another.

    Attributes:
        made: by node of the forward program, the node that gives its value.
        parts: the same for the tensors of nodes that give several.
        at: the node of the forward program whose nodes are written.
        returning: whether it is its backward that is written.
    """

    def __init__(self) -> None:
        self.graph = fx.Graph()
        self.made: dict[fx.Node, fx.Node] = {}
        self.parts: dict[Value, fx.Node] = {}
        self.at: fx.Node | None = None
        self.returning = False
        self._edit = Rewriter(self.graph)
        self._views: dict[str, fx.Node] = {}
        self._uncast: dict[fx.Node, fx.Node] = {}
        self._casts: dict[tuple[fx.Node, int | None], fx.Node] = {}
        self._origins: dict[tuple[str, str, bool, bool, int | None], NodeInfo] = {}

    @property
    def stage(self) -> int | None:
        """The stage of a pipeline whose nodes are written."""
        return None if self.at is None else info(self.at).stage

    def now(self, node: fx.Node) -> fx.Node:
        """The node that gives a value of the forward program."""
        return self.made[node]

    def leaf(self, node: fx.Node, layout: Layout | None, dtype: torch.dtype) -> None:
        """Write a leaf as it lies at rest.

        Args:
            layout: of a value that lies otherwise than its gradient.
            dtype: its own, from which it is cast before it is first read.
        """
        self.copy(node)
        made, known = self.made[node], info(node)
        if layout is not None:
            set_info(made, replace(known, layout=layout))
        if tensor_of(node).dtype == dtype:
            return
        with self._edit.fake_mode:
            value = torch.empty_strided(
                tensor_of(node).shape, tensor_of(node).stride(), dtype=dtype
            )
        set_info(made, replace(info(made), value=value))
        self._uncast[node] = made

    def cast_operands(self, node: fx.Node) -> None:
        """Cast the leaves that a node of the forward program is the first of its stage to read.

        A leaf that is at hand in every stage, such as an input, is cast in each that reads it.
        """
        for leaf in [x for x in node.all_input_nodes if x in self._uncast]:
            own = info(leaf).stage
            stage = self.stage if own is None else own
            if (leaf, stage) not in self._casts:
                self._casts[leaf, stage] = self._cast(leaf, stage, info(node).module)
            self.made[leaf] = self._casts[leaf, stage]

    def _cast(self, leaf: fx.Node, stage: int | None, module: str) -> fx.Node:
        source, value = self._uncast[leaf], info(leaf).value
        record = replace(info(source), value=value, module=module, stage=stage)
        args = (source, tensor_of(leaf).dtype)
        return self._edit.add(cast, args, record=record, name=f"{leaf.name}_cast")

    def copy(self, node: fx.Node) -> None:
        """Write a node as it is."""
        self.made[node] = self.graph.node_copy(node, self.made.__getitem__)
        set_info(self.made[node], info(node))

    def held(self, node: fx.Node, source: fx.Node) -> None:
        """Let a gather that follows every update be what it reads, which then lies as it does."""
        made = self.made[node] = self.made[source]
        if made.op != "placeholder":
            set_info(made, replace(info(made), layout=info(node).layout))

    def part(self, source: fx.Node, index: int, item: fx.Node | None) -> fx.Node:
        """One tensor of a node that gives several, under the name of its `item` if it has one."""
        if (source, index) not in self.parts:
            place = places_of(source)[index]
            taken = (self.made[source], place)
            self.parts[source, index] = self.add(operator.getitem, taken, like=item)
        return self.parts[source, index]

    def emit(
        self, node: fx.Node, env: dict[fx.Node, fx.Node], like: fx.Node | None = None
    ) -> fx.Node:
        """Write a node of a trace; the backward makes equal views of a stage once."""
        args, kwargs = fx.map_arg((node.args, node.kwargs), env.__getitem__)
        if not (self.returning and gives_view(node.target)):
            return self.add(node.target, args, kwargs, like=like)
        same = str((node.target, args, kwargs, self.stage))
        if same not in self._views:
            self._views[same] = self.add(node.target, args, kwargs, like=like)
        return self._views[same]

    def add(
        self,
        target: Target,
        args: Args,
        kwargs: Kwargs | None = None,
        *,
        like: fx.Node | None = None,
        changes: tuple[fx.Node, Sequence[int]] | None = None,
        dtype: torch.dtype | None = None,
        name: str | None = None,
    ) -> fx.Node:
        """Add a call.

        Args:
            like: the node whose value it gives, and whose name it takes.
            changes: the reshard node of which it is one direction, and which of its changes.
            dtype: in which it sends, if not in that of the value.
        """
        if like is None:
            known, name = self._origin(target), name or self._name(target)
        else:
            known, name = info(like), like.name
            known = replace(known, backward=True) if self.returning else known
            known = replace(known, random=True) if self._draws(target) else known
        if changes is not None:
            node, places = changes
            value, reshard = reshards_of(node)[places[0]]
            moves = Moves(node.name, tuple(places), adjoint=self.returning)
            dtype = dtype or tensor_of(value).dtype
            known = replace(known, change=reshard.kind.value, moves=moves, dtype=dtype)
        return self._edit.add(target, args, kwargs, record=known, name=name)

    def _draws(self, target: Target) -> bool:
        """Whether a call for the node that is written draws random numbers."""
        return self.at is not None and info(self.at).random and draws(target)

    def _name(self, target: Target) -> str | None:
        """A name that no node of the forward program has: by theirs their values are found."""
        if self.returning or self.at is None:
            return None
        return f"{self.at.name}_{op_name(target).partition('.')[0]}"

    def _origin(self, target: Target) -> NodeInfo:
        """The record of a node that the model does not name; nodes of one origin share it."""
        place = info(self.at) if self.at is not None else NodeInfo()
        key = (place.module, place.source, self._draws(target), self.returning, place.stage)
        if key not in self._origins:
            module, source, random, backward, stage = key
            self._origins[key] = NodeInfo(
                module=module, source=source, random=random, backward=backward, stage=stage
            )
        return self._origins[key]
