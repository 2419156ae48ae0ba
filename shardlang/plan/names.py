"""What plans, graphs and explanations call the nodes of a program."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import fx

from shardlang.ir.graph import is_item, is_reshard
from shardlang.ir.mesh import Axis
from shardlang.ir.node import info
from shardlang.ir.program import LocalProgram, apply_reshard, apply_reshards
from shardlang.ir.reshard import Change, Reshard
from shardlang.ir.rule import Sharding
from shardlang.ir.state import State
from shardlang.rules.registry import traits_of


def op_name(node: fx.Node) -> str:
    """The short name of the op that a node calls: `linear` for `aten.linear.default`."""
    return traits_of(node).name


def sharding_at(node: fx.Node) -> Sharding | None:
    """How a node's op is split, if it is an op."""
    found = info(node).sharding
    return found if isinstance(found, Sharding) else None


def module_of(node: fx.Node, backward: bool = False) -> str:
    """The module that needs a reshard: of a reduction the maker of the summands, else the reader.

    The backward of an all-reduce adds up what its readers give: it is that of the first of them
    that is split.
    """
    while node.target is apply_reshard:
        source, reshard = node.args[:2]
        assert isinstance(source, fx.Node) and isinstance(reshard, Reshard)
        if backward and reshard.kind is Change.ALL_REDUCE and reshard.adjoint.axes:
            node = split_reader(node, reshard.adjoint.axes[0]) or node
            break
        if reshard.states[0] is not State.PARTIAL:
            break
        node = source
    return info(node).module


def through_reshards(node: fx.Node) -> fx.Node:
    """The value before any changes of layout."""
    while is_reshard(node) or (is_item(node) and _bundle(node) is not None):
        bucket = _bundle(node)
        if bucket is not None:
            node = bucket
        else:
            source = node.args[0]
            assert isinstance(source, fx.Node)
            node = source
    return node


def _bundle(item: fx.Node) -> fx.Node | None:
    """What went into the bucket of reshards that an item was picked from."""
    source = item.args[0] if is_item(item) else None
    if not isinstance(source, fx.Node) or source.target is not apply_reshards:
        return None
    values, index = source.args[0], item.args[1]
    assert isinstance(values, (tuple, list)) and isinstance(index, int)
    value = values[index]
    assert isinstance(value, fx.Node)
    return value


def readers(node: fx.Node) -> list[fx.Node]:
    """The ops that read a value, in whatever layout; the output node among them."""
    found: dict[fx.Node, None] = {}
    todo = list(reversed(list(node.users)))
    while todo:
        user = todo.pop()
        if is_reshard(user) or is_item(user):
            todo += reversed(list(user.users))
        else:
            found[user] = None
    return list(found)


def split_reader(node: fx.Node, axis: Axis) -> fx.Node | None:
    """The first op after a whole value that is split along an axis."""
    todo, seen = [node], {node}
    while todo:
        for reader in readers(todo.pop(0)):
            sharding = sharding_at(reader)
            if sharding is not None and axis in (*sharding.axes(), *sharding.linear):
                return reader
            if reader not in seen:
                seen.add(reader)
                todo.append(reader)
    return None


@dataclass(frozen=True, slots=True)
class Names:
    """Names of values: a leaf's own, a module's output or input, else that of the node.

    Attributes:
        leaves: placeholder name to leaf name.
        values: node name to `model.norm.out` and the like.
    """

    leaves: Mapping[str, str]
    values: Mapping[str, str] = field(default_factory=dict)

    @staticmethod
    def of(program: LocalProgram, values: Mapping[str, str] | None = None) -> Names:
        """The names in a program; `values` maps node names to those of modules' tensors."""
        return Names({leaf.node: leaf.name for leaf in program.leaves}, values or {})

    def __call__(self, node: fx.Node) -> str:
        """The name of a value, whatever layout it is in."""
        origin = through_reshards(node)
        return self.by_node_name(origin.name)

    def by_node_name(self, name: str) -> str:
        """The name of the value that a node of this name makes."""
        return self.leaves.get(name) or self.values.get(name) or name

    def within(self, node: fx.Node, module: str) -> str:
        """The name of a value as seen from a module: what they have in common is left out.

        What is left begins with a name: the number of a layer keeps the list that it is of.
        """
        name, outer = self(node).split("."), module.split(".")
        common, least = 0, 2 if name[-1] == "out" else 1
        while common < min(len(name) - least, len(outer)) and name[common] == outer[common]:
            common += 1
        while common and name[common].isdigit():
            common -= 1
        return ".".join(name[common:])

    def is_leaf(self, node: fx.Node) -> bool:
        """Whether a value is a leaf, in whatever layout."""
        return through_reshards(node).op == "placeholder"
