"""explain: why a tensor lies as it does, and why a collective is there."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from torch import fx

from shardlang.cost.paths import reshard_bytes
from shardlang.explain.alternatives import alternatives
from shardlang.explain.chain import Chains
from shardlang.explain.conflicts import conflicts
from shardlang.explain.find import Book, Subject
from shardlang.explain.types import Alternative, Explanation, Link, Lost, Story
from shardlang.explain.words import ends_text, parts_text, row_text, state_text, titled, type_text
from shardlang.ir.experts.strategies import Strategies
from shardlang.ir.graph import is_item, producer, reshards_of, result_layout, sharding_of
from shardlang.ir.layout import Layout
from shardlang.ir.leaf import Leaf
from shardlang.ir.mesh import Axis, product
from shardlang.ir.node import info, tensor_of
from shardlang.ir.reshard import Reshard
from shardlang.plan.groups import group_lines
from shardlang.plan.names import readers, through_reshards
from shardlang.plan.transfer_calls import transfer_calls

if TYPE_CHECKING:
    from shardlang.compiler.driver import Compiled


def explain(compiled: Compiled, name: str) -> list[Explanation]:
    """Explain the tensor, collective or module of that name.

    Of a module, what it returns and its collectives are explained.

    Raises:
        UnknownName: there is nothing of that name.
    """
    book = Book(compiled)
    writer = Writer(book)
    subject = book.tensor(name)
    if subject is not None:
        return [writer.tensor(subject)]
    found: list[Explanation] = []
    if book.is_module(name):
        returned = book.tensor(f"{name}.out")
        found += [writer.tensor(returned)] if returned is not None else []
    found += writer.experts(name)
    found += [writer.collective(reshard) for reshard in book.collectives_of(name)]
    if not found and not book.is_module(name):
        raise book.unknown(name)
    return found


class Writer:
    """Writes the explanations of one compiled spec."""

    def __init__(self, book: Book) -> None:
        self.book = book
        stores = book.compiled.binding.stores.items()
        places = {name: f"{one.span.file}:{one.span.line}" for name, one in stores}
        self.chains = Chains(book.propagated, book.names, places)

    def tensor(self, subject: Subject) -> Explanation:
        """Why a tensor lies as it does."""
        layout = result_layout(subject.node)
        facts = list(self._types(subject, layout))
        source = info(subject.node).source
        facts += [f"made at {source}"] if source else []
        facts += [*self._stages(subject), *self._update(subject)]
        pipeline = self.book.plan.pipeline
        axes = [
            axis
            for axis in self.book.propagated.mesh.axes
            if pipeline is None or axis.name != pipeline.axis
        ]
        stories = [self._story(subject.node, layout, axis) for axis in axes]
        leaf = self._gathered(subject)
        if leaf is not None:
            stories = [_of_parts(one, leaf) for one in stories]
        calls = [*self.book.plan.collectives, *transfer_calls(self.book.plan)]
        rows = [row for row in calls if subject.name in row.tensors]
        return Explanation(
            subject.name, subject.kind, tuple(facts), tuple(stories), tuple(map(row_text, rows))
        )

    def _types(self, subject: Subject, layout: Layout) -> Iterator[str]:
        """The type of a tensor, and that of its gradient and state where they lie otherwise."""
        dtype, leaf = tensor_of(subject.node).dtype, self._gathered(subject)
        if leaf is None:
            yield type_text(dtype, layout)
            return
        yield type_text(dtype, leaf.at_rest)
        yield f"its {parts_text(leaf)}: {type_text(dtype, leaf.layout)}"

    def _gathered(self, subject: Subject) -> Leaf | None:
        """The leaf of a parameter of which storage splits the gradient or state alone."""
        leaves = self.book.compiled.program.leaves if subject.kind == "param" else ()
        return next((x for x in leaves if x.name == subject.name and x.gathered is not None), None)

    def _stages(self, subject: Subject) -> list[str]:
        """The stages of a pipeline that hold or make a tensor."""
        pipeline = self.book.plan.pipeline
        stages = pipeline.stages_of.get(subject.name, ()) if pipeline is not None else ()
        if pipeline is None or not stages:
            return []
        rank_of = pipeline.schedule.rank_of()
        first, *others = (f"stage {n} (rank {rank_of[n]} of {pipeline.axis})" for n in stages)
        if subject.kind == "param":
            copies = f", with a copy in {', '.join(others)}" if others else ""
            return [f"held in {first}{copies}"]
        word = "read" if subject.kind == "input" else "made"
        return [f"{word} in {', '.join((first, *others))}"]

    def _update(self, subject: Subject) -> list[str]:
        """The settings of a parameter's update, where the spec groups parameters."""
        for group in self.book.plan.groups:
            if subject.name in group.names:
                ((settings, _, _),) = group_lines([group])
                return [f"updated by {self.book.compiled.rule.title} with {settings}"]
        return []

    def _story(self, node: fx.Node, layout: Layout, axis: Axis) -> Story:
        title = state_text(layout, axis)
        links = self.chains.links(node, axis)
        made = self._chosen(node)
        options = alternatives(self.book.flow, made, axis) if made is not None else ()
        choice = self.chains.where(made) if made is not None and len(options) > 1 else ""
        if layout.state(axis).whole and not links:
            links = tuple(self._whole(node, axis))
        lost = tuple(self._lost(made, axis)) if made is not None else ()
        return Story(axis.name, title, links, choice, options if choice else (), lost)

    def _lost(self, made: fx.Node, axis: Axis) -> Iterator[Lost]:
        """The layouts along an axis that an op did not take from its neighbours."""
        for one in dict.fromkeys(conflicts(self.book.flow, made, axis)):
            where = self.chains.where(one.neighbour)
            text = (
                f"{axis} on dim {one.dim}, as its reader {where} asks"
                if one.reads
                else f"{axis} on dim {one.dim} of what {where} gives"
            )
            links = self.chains.links(one.neighbour, axis)
            yield Lost(text, info(one.neighbour).source, links[-1] if links else None)

    def _chosen(self, node: fx.Node) -> fx.Node | None:
        """The op that makes a value, if it could be split otherwise."""
        made = producer(node)[0]
        return made if made.op == "call_function" and info(made).sharding is not None else None

    def _whole(self, node: fx.Node, axis: Axis) -> Iterator[Link]:
        """Why an axis does not split a value."""
        made = producer(node)[0]
        if made.op == "placeholder":
            yield Link(f"nothing states it split over {axis}, and nothing that it flows to asks")
            return
        operands = self.book.flow.dims.operands[made]
        split = [n for n in operands if result_layout(n).dim_of(axis) is not None]
        if not split:
            yield Link(f"nothing that {self.chains.where(made)} reads is split over {axis}")
        for operand in split:
            dim = result_layout(operand).dim_of(axis)
            name = self.book.names(operand)
            why = _refusal(made, operand, axis, self.book.flow.dims.operands[made])
            yield Link(f"`{name}` is split over {axis} on dim {dim}, but {why}")

    def collective(self, name: str) -> Explanation:
        """Why a collective is there; of one of a microbatch what the plan says."""
        rows = [row for row in self.book.plan.collectives if row.node == name]
        if name not in self.book.reshards:
            title = f"{name}: {titled(rows[0].tensors)}"
            return Explanation(title, "collective", tuple(map(row_text, rows)), ())
        node = self.book.reshards[name]
        pairs = reshards_of(node)
        value, reshard = pairs[0]
        facts = [row_text(row) for row in rows]
        named = [f"{self.book.names(each)}: " if len(pairs) > 1 else "" for each, _ in pairs]
        facts += [name + ends_text(*pair) for name, pair in zip(named, pairs, strict=True)]
        dtype = tensor_of(value).dtype
        tensors = rows[0].tensors if rows else (self.book.names(value),)
        stories = [*self._ends(node, value, reshard)]
        way = _through_whole(reshard, dtype.itemsize, info(node).differentiable)
        if way is not None:
            stories.append(Story("", "the reshards", (), "the change of layout", way))
        title = f"{name}: {titled(tensors)}"
        return Explanation(title, "collective", tuple(facts), tuple(stories))

    def experts(self, module: str) -> list[Explanation]:
        """Why the rows of a module of experts travel, or the experts, or neither."""
        routes = self.book.compiled.program.info.strategies
        return [_experts(found) for found in routes if found.module == module]

    def _ends(self, node: fx.Node, value: fx.Node, reshard: Reshard) -> Iterator[Story]:
        """The op that gives the value, and the first that reads it, along the reshard's axis."""
        axis = reshard.axes[0]
        made = self.book.nodes.get(through_reshards(value).name)
        if made is not None:
            links = self.chains.links(made, axis)
            yield self._end(f"{self.chains.where(producer(made)[0])} gives it", made, axis, links)
        reader = next((r for r in readers(node) if r.op != "output"), None)
        read = self.book.nodes.get(reader.name) if reader is not None else None
        if read is not None and info(read).sharding is not None:
            links = self.chains.links(read, axis)
            yield self._end(f"{self.chains.where(read)} reads it", read, axis, links)

    def _end(self, title: str, node: fx.Node, axis: Axis, links: tuple[Link, ...]) -> Story:
        made = producer(node)[0]
        options = alternatives(self.book.flow, made, axis) if not is_item(made) else ()
        choice = self.chains.where(made) if len(options) > 1 else ""
        return Story(axis.name, title, links, choice, options if choice else ())


def _of_parts(story: Story, leaf: Leaf) -> Story:
    """The story of an axis that splits only what storage splits."""
    if story.axis not in {axis.name for axis in leaf.store}:
        return story
    return replace(story, title=f"{story.title} of its {parts_text(leaf)}")


def _refusal(made: fx.Node, operand: fx.Node, axis: Axis, operands: list[fx.Node]) -> str:
    """Why an op does not take an axis from an operand that it splits."""
    sharding = sharding_of(made)
    other = sharding.factor_of(axis)
    if other is not None:
        return f"the op is split over {axis} along another dim"
    found = sharding.read_operand(operands.index(operand), result_layout(operand))
    names = [name for name, dim in found.items() if axis in dim.axes]
    if any(name in sharding.rule.whole for name in names):
        return "the op needs that dim whole"
    if axis in sharding.closed:
        return f"a parameter keeps the op whole over {axis}"
    return "the op does not carry that dim on"


def _experts(found: Strategies) -> Explanation:
    """The strategies that bring rows and experts together, and those that are not open."""
    axes = product(found.axes)
    prices = sorted((cost, one) for one, cost in found.bytes.items() if math.isfinite(cost))
    options = [Alternative(one.meaning, round(cost), one is found.taken) for cost, one in prices]
    closed = [Link(f"{one.meaning}: not so, {why}") for one, why in found.closed.items()]
    title = f"{axes} splits both the rows and the experts"
    story = Story(axes, title, tuple(closed), "rows and experts", tuple(options))
    ops = ", ".join(f"`{op}`" for op in found.ops)
    facts = (f"products {ops}; rows in equal shares expected",)
    return Explanation(found.module or "the model", "experts", facts, (story,))


def _through_whole(reshard: Reshard, itemsize: int, diff: bool) -> tuple[Alternative, ...] | None:
    """The reshard itself, and the way through the tensor whole along its axes, in bytes."""
    whole = Layout(
        tuple(dim.without(reshard.axes) for dim in reshard.src.dims),
        reshard.src.partial - set(reshard.axes),
    )
    source, goal = reshard.src.unlabelled(), reshard.dst.unlabelled()
    if whole in (source, goal):
        return None
    direct = reshard_bytes(source, goal, itemsize, diff)
    gathered = reshard_bytes(source, whole, itemsize, diff)
    around = gathered + reshard_bytes(whole, goal, itemsize, diff)
    if not math.isfinite(direct + around):
        return None
    return (
        Alternative(reshard.kind, round(direct), True),
        Alternative("through the whole tensor", round(around), False),
    )
