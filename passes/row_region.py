"""The region of one group of experts: the products and lookups by one tensor of groups, and the ops
between them that handle every row by itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import fx

from shardlang.ir.graph import home, is_item, producer, sharding_of
from shardlang.ir.layout import DimLayout
from shardlang.ir.mesh import Axis
from shardlang.passes.flow import operands_of
from shardlang.rules.call import Call
from shardlang.rules.registry import find

aten = torch.ops.aten
PRODUCT = torch.ops.shardlang.grouped_mm.default
LOOKUP = aten.index.Tensor
CUTS = {aten.chunk.default, aten.split.Tensor, aten.split_with_sizes.default, aten.slice.Tensor}
"""Ops that take parts along a dim; along another than the rows they keep rows together."""


@dataclass(slots=True)
class Region:
    """What one tensor of groups decides.

    Attributes:
        groups: the group of every row.
        axes: the axes that split both the rows and the experts, in the order of the mesh.
        rows: how the rows are split.
        matrices: how the experts are split.
        products: the products by groups.
        inside: all ops of the region, in the order of the graph.
    """

    groups: fx.Node
    axes: tuple[Axis, ...]
    rows: DimLayout
    matrices: DimLayout
    products: list[fx.Node] = field(default_factory=list)
    inside: dict[fx.Node, None] = field(default_factory=dict)

    def grow(self) -> None:
        """Collect the ops between the products, and the lookups of what is added there."""
        below = self._below()
        found = {*self.products, *self._above(below)}
        found |= self._biased(found)
        found |= {one for node in found for one in self._lookups(node)}
        found |= {user for node in found for user in node.users if is_item(user)}
        graph = self.groups.graph
        self.inside = {node: None for node in graph.nodes if node in found}

    def _below(self) -> set[fx.Node]:
        """Ops that handle every row by itself behind the products, those included."""
        found, todo = set(self.products), list(self.products)
        while todo:
            for user in todo.pop().users:
                if user not in found and self._keeps_rows(user):
                    found.add(user)
                    todo.append(user)
        return found

    def _above(self, below: set[fx.Node]) -> set[fx.Node]:
        """Those of the ops that some product reads."""
        found: set[fx.Node] = set()
        todo = [Call(product)["x"] for product in self.products]
        while todo:
            node = todo.pop()
            if node in below and node not in found:
                found.add(node)
                todo += node.all_input_nodes
        return found

    def _biased(self, found: set[fx.Node]) -> set[fx.Node]:
        """Ops behind the last product that add to it what is looked up by the same groups."""
        added = set()
        for node in found:
            users = list(node.users)
            if len(users) != 1 or users[0] in found or is_item(users[0]):
                continue
            others = [o for o in self.row_operands(users[0]) if o is not node]
            if self._keeps_rows(users[0]) and others and all(map(self.is_lookup, others)):
                added.add(users[0])
        return added

    def _lookups(self, node: fx.Node) -> Iterator[fx.Node]:
        return (operand for operand in self.row_operands(node) if self.is_lookup(operand))

    def is_lookup(self, node: fx.Node) -> bool:
        """Whether a value is looked up, by these groups, in what is split as the experts are."""
        if node.target is not LOOKUP or any(user.op == "output" for user in node.users):
            return False
        call = Call(node)
        alone = len(call["indices"]) == 1 and call["indices"][0] is self.groups
        return alone and home(call.operands[0]).dims[0] == self.matrices

    def row_operands(self, node: fx.Node) -> list[fx.Node]:
        """The operands of an op whose first dim is its rows."""
        if is_item(node) or node.op != "call_function":
            return []
        factor = row_factor(node)
        specs = sharding_of(node).rule.operands
        operands = operands_of(node)
        return [o for o, spec in zip(operands, specs, strict=True) if factor in spec.factors]

    def _keeps_rows(self, node: fx.Node) -> bool:
        """Whether an op gives, for every row of its operands, a row that is made from it alone."""
        if is_item(node):
            return producer(node)[0].target in CUTS
        if node.op != "call_function" or "sharding" not in node.meta:
            return False
        sharding, factor = sharding_of(node), row_factor(node)
        rule = sharding.rule
        if factor is None or rule.random or sharding.factors[factor] != self.rows:
            return False
        if node.target is PRODUCT:
            return node in self.products
        dims = [*(operand.dims for operand in rule.operands), *rule.results]
        first_only = all(factor not in _names(one[1:]) for one in dims)
        results = all(one and one[0] == ((factor,),) for one in rule.results)
        return first_only and results and _local_as_it_stands(node)

    def entries(self) -> dict[fx.Node, None]:
        """Rows that come from outside, the groups not among them."""
        read = (one for node in self.inside for one in self.row_operands(node))
        return {
            one: None for one in read if producer(one)[0] not in self.inside if one != self.groups
        }

    def exits(self) -> list[fx.Node]:
        """Values that something outside reads."""
        values = [n for n in self.inside if not isinstance(n.meta["val"], (list, tuple))]
        return [n for n in values if any(user not in self.inside for user in n.users)]

    def weights(self) -> dict[fx.Node, None]:
        """What the products and lookups read by group."""
        return {Call(node).operands[_weight_slot(node)]: None for node in self.readers()}

    def readers(self) -> list[fx.Node]:
        """The products and lookups."""
        return [n for n in self.inside if n in self.products or self.is_lookup(n)]


def _weight_slot(node: fx.Node) -> int:
    return 1 if node.target is PRODUCT else 0


def _names(dims: tuple[tuple[tuple[str, ...], ...], ...]) -> set[str]:
    return {name for dim in dims for block in dim for name in block}


def row_factor(node: fx.Node) -> str | None:
    """The factor that is the first dim of an op's result."""
    results = sharding_of(node).rule.results
    first = results[0][0] if results and results[0] else ()
    return first[0][0] if len(first) == 1 and len(first[0]) == 1 else None


def _local_as_it_stands(node: fx.Node) -> bool:
    """Whether a device runs the op on its rows with the same arguments, however many they are."""
    if node.target in CUTS:
        return Call(node).dim() != 0
    declared = find(node.target)
    return declared is None or declared.localize is None


def regions(graph_nodes: list[fx.Node], mesh_axes: tuple[Axis, ...]) -> list[Region]:
    """Every region whose rows and experts lie split over the same axes."""
    found: dict[fx.Node, Region] = {}
    for node in graph_nodes:
        if node.target is not PRODUCT or "sharding" not in node.meta:
            continue
        call, sharding = Call(node), sharding_of(node)
        matrices, rows = home(call["weight"]).dims[0], sharding.factors["s"]
        held = sharding.factors["e"].axes or set(sharding.linear) & set(matrices.axes)
        if not matrices.axes or held or not set(matrices.axes) <= set(rows.axes):
            continue
        axes = tuple(axis for axis in mesh_axes if axis in matrices.axes)
        region = found.setdefault(call["groups"], Region(call["groups"], axes, rows, matrices))
        if region.matrices == matrices and region.rows == rows:
            region.products.append(node)
    for region in found.values():
        region.grow()
    return list(found.values())
