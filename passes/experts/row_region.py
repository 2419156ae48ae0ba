"""What one tensor of groups decides: the products and look-ups by it, and the ops between them that
handle every row by itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import networkx as nx
import torch
from torch import fx

from shardlang.ir.dim_layout import DimLayout
from shardlang.ir.graph import is_item, producer, result_layout, sharding_of
from shardlang.ir.mesh import Axis
from shardlang.ir.node import has_several, info, tensor_of, tensors_of
from shardlang.ir.rule import Sharding
from shardlang.ir.traits import OpKind
from shardlang.ir.values import reached, values
from shardlang.passes.propagate.join_dims import operands_of
from shardlang.rules.call import Call
from shardlang.rules.registry import find, traits_of
from shardlang.rules.view import to_reshape


@dataclass(slots=True)
class Region:
    """What one tensor of groups decides.

    Attributes:
        groups: the group of every row.
        axes: the axes that split both the rows and the experts, in the order of the mesh.
        rows: how the rows are split.
        matrices: how the experts are split.
        readers: the products and look-ups by group.
        products: the products, and other ops that read more of a look-up than they take and give.
        inside: all ops of the region, in the order of the graph.
    """

    groups: fx.Node
    axes: tuple[Axis, ...]
    rows: DimLayout
    matrices: DimLayout
    readers: list[fx.Node] = field(default_factory=list)
    products: list[fx.Node] = field(default_factory=list)
    inside: dict[fx.Node, None] = field(default_factory=dict)

    def grow(self, net: nx.DiGraph) -> None:
        """Collect the products, what stands between them, and the look-ups that these read.

        Args:
            net: the values of the graph.
        """
        users = [u for reader in self.readers for u in reader.users if self.is_lookup(reader)]
        mixed = (user for user in users if self._keeps_rows(user) and self._shrinks(user))
        found = [*(n for n in self.readers if is_product(n)), *mixed]
        self.products = list(dict.fromkeys(found))
        inside = {*self.products, *self._between(net)}
        inside |= self._biased(inside)
        inside |= {o for node in inside for o in self.row_operands(node) if self.is_lookup(o)}
        inside |= {user for node in inside for user in node.users if is_item(user)}
        self.inside = {node: None for node in self.groups.graph.nodes if node in inside}
        self.readers = [node for node in self.readers if node in inside]

    def _shrinks(self, node: fx.Node) -> bool:
        """Whether an op reads more of look-ups than its other rows and its result are."""
        operands = self.row_operands(node)
        looked_up = sum(_elements(o) for o in operands if self.is_lookup(o))
        others = sum(_elements(o) for o in operands if not self.is_lookup(o))
        return looked_up > others + _elements(node)

    def _between(self, net: nx.DiGraph) -> set[fx.Node]:
        """Ops that handle every row by itself, after one product and before another."""
        products = set(self.products)
        below = reached(net, products, lambda node: node in products or self._keeps_rows(node))
        read = (one for product in self.products for one in self.row_operands(product))
        return reached(nx.reverse_view(net), read, below.__contains__)

    def _biased(self, found: set[fx.Node]) -> set[fx.Node]:
        """Ops after the last product that add to it what is looked up by the same groups."""
        added = set()
        for node in found:
            users = list(node.users)
            if len(users) != 1 or users[0] in found or is_item(users[0]):
                continue
            others = [o for o in self.row_operands(users[0]) if o is not node]
            if self._keeps_rows(users[0]) and others and all(map(self.is_lookup, others)):
                added.add(users[0])
        return added

    def is_lookup(self, node: fx.Node) -> bool:
        """Whether a value is looked up by these groups."""
        return _is_index(node) and node in self.readers

    def row_operands(self, node: fx.Node) -> list[fx.Node]:
        """The operands of an op that have its rows."""
        if is_item(node) or node.op != "call_function" or info(node).sharding is None:
            return []
        factor, specs = row_factor(node), sharding_of(node).rule.operands
        pairs = zip(operands_of(node), specs, strict=True)
        return [operand for operand, spec in pairs if factor in spec.factors]

    def _keeps_rows(self, node: fx.Node) -> bool:
        """Whether an op gives, for every row of its operands, a row that is made from it alone."""
        if is_item(node):
            return self._keeps_rows(producer(node)[0])
        if node.op != "call_function" or info(node).sharding is None:
            return False
        if is_product(node) or _is_index(node):
            return node in self.readers
        sharding, factor = sharding_of(node), row_factor(node)
        rule = sharding.rule
        if factor is None or rule.random or sharding.factors[factor] != self.rows:
            return False
        dims = [*(operand.dims for operand in rule.operands), *rule.results]
        first_only = all(factor not in _names(one[1:]) for one in dims)
        results = all(one and one[0] == ((factor,),) for one in rule.results)
        return first_only and results and _local_as_it_stands(node)

    def entries(self) -> dict[fx.Node, None]:
        """Rows that come from outside, the groups not among them."""
        read = (one for node in self.inside for one in self.row_operands(node))
        outside = (one for one in read if producer(one)[0] not in self.inside)
        return {one: None for one in outside if one is not self.groups}

    def exits(self) -> list[fx.Node]:
        """Values that something outside reads."""
        values = [n for n in self.inside if not has_several(n)]
        return [n for n in values if any(user not in self.inside for user in n.users)]

    def weights(self) -> dict[fx.Node, None]:
        """What the products and look-ups read by group."""
        return {weight_of(node): None for node in self.readers}


def is_product(node: fx.Node) -> bool:
    """Whether an op multiplies rows by the matrices of their groups."""
    return traits_of(node).kind is OpKind.GROUPED_PRODUCT


def _is_index(node: fx.Node) -> bool:
    return traits_of(node).kind is OpKind.INDEX


def weight_of(node: fx.Node) -> fx.Node:
    """What a product or look-up reads by group."""
    return Call(node).operands[1 if is_product(node) else 0]


def _elements(node: fx.Node) -> int:
    return sum(math.prod(value.shape) for value in tensors_of(node))


def _names(dims: tuple[tuple[tuple[str, ...], ...], ...]) -> set[str]:
    return {name for dim in dims for block in dim for name in block}


def row_factor(node: fx.Node) -> str | None:
    """The factor that is the first dim of an op's result."""
    results = sharding_of(node).rule.results
    first = results[0][0] if results and results[0] else ()
    return first[0][0] if len(first) == 1 and len(first[0]) == 1 else None


def _local_as_it_stands(node: fx.Node) -> bool:
    """Whether a device runs the op on its rows with the same arguments, however many they are."""
    declared, sharding = find(node.target), sharding_of(node)
    if declared is None or declared.localize is None or regroups(node):
        return True
    factor = row_factor(node)
    dims = {n: dim.without(dim.axes) if n == factor else dim for n, dim in sharding.factors.items()}
    whole = Sharding(sharding.rule, dims, dict(sharding.linear))
    return declared.localize(Call(node), sharding) == declared.localize(Call(node), whole)


def regroups(node: fx.Node) -> bool:
    """Whether an op only regroups dims of one operand."""
    declared = find(node.target)
    return declared is not None and declared.localize is to_reshape and len(operands_of(node)) == 1


def groups_of(node: fx.Node) -> fx.Node | None:
    """The groups by which an op reads a weight, if it is a product or a look-up of rows."""
    if is_product(node):
        groups = Call(node).operand("groups")
    elif _is_index(node) and len(Call(node).sequence("indices")) == 1:
        (groups,) = Call(node).operands[1:]
    else:
        return None
    val = tensor_of(groups)
    whole_numbers = not (val.is_floating_point() or val.dtype in (torch.bool, torch.uint8))
    return groups if val.dim() == 1 and whole_numbers else None


def barred(nodes: Iterable[fx.Node]) -> list[tuple[fx.Node, tuple[Axis, ...], tuple[Axis, ...]]]:
    """Products whose rows cannot be routed over axes that split rows and experts.

    They are those whose experts are split over further axes, which do not split the rows. Given are
    the product, the common axes and the further ones.
    """
    found = []
    for node in nodes:
        if not is_product(node) or info(node).sharding is None:
            continue
        rows, matrices = sharding_of(node).factors["s"], result_layout(weight_of(node)).dims[0]
        common = tuple(axis for axis in matrices.axes if axis in rows.axes)
        further = tuple(axis for axis in matrices.axes if axis not in rows.axes)
        if common and further:
            found.append((node, common, further))
    return found


def regions(graph: fx.Graph, mesh_axes: tuple[Axis, ...]) -> list[Region]:
    """Every region whose rows and experts lie split over the same axes."""
    found: dict[tuple[fx.Node, DimLayout, DimLayout], Region] = {}
    for node in graph.nodes:
        groups = groups_of(node) if info(node).sharding is not None else None
        factor = row_factor(node) if groups is not None else None
        if groups is None or factor is None:
            continue
        sharding, matrices = sharding_of(node), result_layout(weight_of(node)).dims[0]
        rows, taken = sharding.factors[factor], sharding.operand(operands_of(node).index(groups))
        free = not set(matrices.axes) & set(sharding.linear)
        if not matrices.axes or not free or not set(matrices.axes) <= set(taken.dims[0].axes):
            continue
        axes = tuple(axis for axis in mesh_axes if axis in matrices.axes)
        made = Region(groups, axes, rows, matrices)
        found.setdefault((groups, rows, matrices), made).readers.append(node)
    net = values(graph) if found else nx.DiGraph()
    for region in found.values():
        region.grow(net)
    return [region for region in found.values() if region.products]
