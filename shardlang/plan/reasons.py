"""Why a collective is there: one sentence for a person, forward and backward."""

from __future__ import annotations

import re
from dataclasses import dataclass

from torch import fx

from shardlang.ir.accumulated import MICROBATCH
from shardlang.ir.collective import ReduceOp
from shardlang.ir.graph import is_item, is_reshard, producer
from shardlang.ir.layout import Layout
from shardlang.ir.mesh import Axis, joined, product
from shardlang.ir.node import info
from shardlang.ir.origin import Reason
from shardlang.ir.program import LocalProgram
from shardlang.ir.records import Stated
from shardlang.ir.reshard import Change, Reshard
from shardlang.ir.traits import OpKind
from shardlang.plan.names import (
    Names,
    module_of,
    op_name,
    readers,
    sharding_at,
    split_reader,
    through_reshards,
)
from shardlang.rules.registry import traits_of


@dataclass(frozen=True, slots=True)
class Reasons:
    """Writes the reasons of one program's reshards."""

    program: LocalProgram
    names: Names

    def forward(self, node: fx.Node, value: fx.Node, reshard: Reshard) -> str:
        """Why the forward call is made."""
        axes = _of_mesh(reshard.axes)
        over = product(axes)
        if reshard.reduce is not ReduceOp.SUM:
            kind = "largest" if reshard.reduce is ReduceOp.MAX else "smallest"
            return f"{self._op(value, axes[0])} finds the {kind} over a dim split over {over}"
        if reshard.route is not None:
            return f"rows {reshard.route.goal} for {self._reader(node)}; equal shares expected"
        if reshard.reads is not None:
            return f"{self._beyond(node, reshard)} reads beyond the edges of its {over} shards"
        if reshard.kind in (Change.ALL_REDUCE, Change.REDUCE_SCATTER):
            return self._summed(node, value, reshard)
        if reshard.kind is Change.ALL_GATHER:
            return self._gathered(node, value, reshard)
        before, after = reshard.dims
        if reshard.kind is Change.ALL_TO_ALL:
            return (
                f"dim {before} is split over {over}, {self._reader(node)} needs dim {after} split"
            )
        if reshard.kind is Change.EXCHANGE:
            return f"{self._reader(node)} needs other dims split over {over}"
        return f"{self._reader(node)} needs dim {before} split another way over {over}"

    def backward(self, node: fx.Node, value: fx.Node, reshard: Reshard) -> str:
        """Why the backward call is made."""
        over = product(_of_mesh(reshard.adjoint.axes))
        if reshard.kind in (Change.VARY, Change.ALL_REDUCE):
            return self._varied(node, value, reshard)
        name = self.names.within(value, module_of(node))
        if reshard.route is not None:
            goal = reshard.route.reversed().goal
            return f"gradients of the rows of `{name}` {goal}; equal shares expected"
        if reshard.reads is not None:
            return f"gradient of `{name}` where {self._beyond(node, reshard)} read beyond the edges"
        if reshard.kind is Change.ALL_GATHER:
            how = "as it is stored" if self.names.is_leaf(value) else "as the value is"
            return f"gradient of `{name}`, summed over {over} and split {how}"
        if reshard.kind is Change.REDUCE_SCATTER:
            return f"each {over} device needs the whole gradient of `{name}` for its summand"
        if reshard.kind is Change.SLICE:
            return f"gradient of `{name}`, of which each {over} device used a part"
        return f"gradient of `{name}` on its way back"

    def bucket(self, pairs: list[tuple[fx.Node, Reshard]]) -> str:
        """Why several gradients are reduced, scattered or gathered in one call."""
        reshard = pairs[0][1]
        axes = _of_mesh(reshard.axes)
        many, over = f"gradients of {len(pairs)} parameters", product(axes)
        if reshard.kind is Change.ALL_GATHER:
            return f"{many}, summed over {over} and split as they are stored"
        return f"{many}, whole over {over}, used by {self._kind_of(axes)}"

    def gathers(self, pairs: list[tuple[fx.Node, Reshard]]) -> str:
        """Why several parameters are gathered in one call."""
        axes = _of_mesh(pairs[0][1].axes)
        over = product(axes)
        stored = all(self._is_stored(value, axes[0]) for value, _ in pairs)
        how = "stored" if stored else "laid out"
        return f"{len(pairs)} parameters are {how} over {over}, gathered together before use"

    def held(self, pairs: list[tuple[fx.Node, Reshard]]) -> str:
        """Why parameters are gathered after the update."""
        many = len(pairs) > 1
        what = f"{len(pairs)} parameters" if many else f"`{self.names(pairs[0][0])}`"
        return f"the updated parts of {what}, gathered for the next step"

    def _varied(self, node: fx.Node, value: fx.Node, reshard: Reshard) -> str:
        axes = _of_mesh(reshard.adjoint.axes)
        over, name = product(axes), self.names.within(value, module_of(node, backward=True))
        if self.names.is_leaf(value):
            return f"gradient of `{name}`, whole over {over}, used by {self._kind_of(axes)}"
        reader = split_reader(node, axes[0])
        what = self._parallel(reader, axes) if reader is not None else "what reads it"
        return f"{what} gives each {over} device a summand of the gradient of `{name}`"

    def _kind_of(self, axes: tuple[Axis, ...]) -> str:
        kind = "data" if all(axis in self.program.data_axes for axis in axes) else "values"
        return f"{kind} split over {product(axes)}"

    def _summed(self, node: fx.Node, value: fx.Node, reshard: Reshard) -> str:
        axes = _of_mesh(reshard.axes)
        maker = made_partial(value, axes[0])
        text = f"{self._maker(maker, axes[0])} leaves a partial sum over {product(axes)}"
        if reshard.kind is Change.REDUCE_SCATTER:
            return f"{text}, {self._reader(node)} takes its part of dim {reshard.dims[1]}"
        if any(reader.op == "output" for reader in readers(node)):
            return f"{text}, results leave whole"
        return text

    def _maker(self, maker: fx.Node, axis: Axis) -> str:
        kind = traits_of(maker).kind
        if kind is OpKind.PRODUCT:
            sharding = sharding_at(maker)
            origin = sharding.origins.get(axis) if sharding is not None else None
            if origin is not None and origin.reason is Reason.CLAIMED:
                return f"row-parallel `{op_name(maker)}`"
        elif kind is OpKind.LOOKUP:
            return f"`{op_name(maker)}` with its rows split"
        elif maker.op == "placeholder":
            return f"`{self.names(maker)}`"
        return f"{self._op(maker, axis)} over a split dim"

    def _op(self, node: fx.Node, axis: Axis) -> str:
        """An op, and the one that was rewritten into it."""
        sharding = sharding_at(node)
        origin = sharding.origins.get(axis) if sharding is not None else None
        name = op_name(node)
        if origin is not None and origin.reason is Reason.LOWERED:
            whole = _model_op(origin.source)
            return f"`{whole}`" if whole == name else f"`{name}` in `{whole}`"
        return f"`{name}`"

    def _beyond(self, node: fx.Node, reshard: Reshard) -> str:
        """The op that reads its neighbours, and the dim along which it does."""
        sharding = sharding_at(node)
        origin = sharding.origins.get(reshard.axes[0]) if sharding is not None else None
        name = origin.source if origin is not None else op_name(node)
        return f"`{_model_op(name)}` along dim {reshard.dims[0]}"

    def _gathered(self, node: fx.Node, value: fx.Node, reshard: Reshard) -> str:
        axes = _of_mesh(reshard.axes)
        name, over = self.names.within(value, module_of(node)), joined(axes)[0]
        if info(node).full_gather is not None:
            before = f"gathered over {product(axes)} first"
            return f"{self._reader(node)} needs `{name}` split another way, {before}"
        if self.names.is_leaf(value):
            how = "stored" if self._is_stored(value, axes[0]) else "laid out"
            return f"`{name}` is {how} over {over}, gathered before use"
        stated = info(node).stated
        if isinstance(stated, Stated) and stated.place:
            return f"`{name}` is stated whole over {over} at {stated.place}"
        first = next(iter(readers(node)), None)
        if first is None or first.op == "output":
            return f"results leave whole over {over}"
        return f"{self._parallel(first, axes)} reads `{name}` whole over {over}"

    def _is_stored(self, value: fx.Node, axis: Axis) -> bool:
        """Whether an axis splits a parameter for its storage alone."""
        sharding = sharding_at(through_reshards(value))
        origin = sharding.origins.get(axis) if sharding is not None else None
        return origin is not None and origin.reason is Reason.STORED

    def _parallel(self, reader: fx.Node, axes: tuple[Axis, ...]) -> str:
        """A reader, and how it is split along an axis itself."""
        sharding = sharding_at(reader)
        if sharding is None:
            return f"`{op_name(reader)}`"
        origin = next((sharding.origins[a] for a in axes if a in sharding.origins), None)
        if (
            origin is not None
            and origin.reason is Reason.CLAIMED
            and traits_of(reader).kind is OpKind.PRODUCT
        ):
            inner = any(axis in sharding.inner_axes() for axis in axes)
            return f"{'row' if inner else 'column'}-parallel `{op_name(reader)}`"
        return f"`{op_name(reader)}`"

    def _reader(self, node: fx.Node) -> str:
        first = next(iter(readers(node)), None)
        if first is None or first.op == "output":
            return "the result"
        return f"`{op_name(first)}`"


def _of_mesh(axes: tuple[Axis, ...]) -> tuple[Axis, ...]:
    """The axes without that of the microbatches, over which a device sums by itself."""
    return tuple(axis for axis in axes if axis.name != MICROBATCH)


def _model_op(source: str) -> str:
    """The name of the op that a node of the model was."""
    return re.sub(r"(_default)?(_\d+)?$", "", source)


def made_partial(value: fx.Node, axis: Axis) -> fx.Node:
    """The op at which a partial sum came to be, before the linear ops that passed it on."""
    node = value
    while True:
        node = producer(node)[0] if is_item(node) else node
        before = [n for n in node.all_input_nodes if _is_partial(n, axis)]
        real = [n for n in before if not is_reshard(n)] or [
            n for n in before if _is_partial(n.args[0], axis)
        ]
        if not real:
            return node
        node = real[0]


def _is_partial(node: object, axis: Axis) -> bool:
    layout = info(node).layout if isinstance(node, fx.Node) else None
    return isinstance(layout, Layout) and axis in layout.partial
