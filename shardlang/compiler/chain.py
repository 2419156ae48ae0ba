"""The chain of layers of a model, and which of them computes what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from torch import fx

from shardlang.ir.leaf import LeafKind
from shardlang.ir.node import info
from shardlang.ir.pipeline.split import Split
from shardlang.ir.program import LocalProgram
from shardlang.rules.call import Call
from shardlang.rules.registry import find


def module_lists(modules: Sequence[str]) -> Mapping[str, Sequence[str]]:
    """The lists of a model, by name: the modules in it that have a number, in order."""
    found: dict[str, list[tuple[int, str]]] = {}
    for name in modules:
        owner, _, number = name.rpartition(".")
        if number.isdigit():
            found.setdefault(owner, []).append((int(number), name))
    return {owner: [name for _, name in sorted(layers)] for owner, layers in found.items()}


def chain_of(graph: fx.Graph, modules: Sequence[str]) -> list[str]:
    """The layers of the outermost lists that the model's value runs through, in its order.

    A list counts if each of its layers reads what the one before it makes. Several lists, as those
    of an encoder and a decoder, are one after the other.
    """
    lists = module_lists(modules)
    outer = [name for name in lists if not any(_inside(name, other) for other in lists)]
    layers = [layer for name in outer for layer in lists[name]]
    first, before = _walk(graph, Split({layer: i for i, layer in enumerate(layers)}, len(layers)))
    index = {layer: i for i, layer in enumerate(layers)}
    kept: list[str] = []
    for name in outer:
        numbers = [index[layer] for layer in lists[name]]
        read = all(a in before.get(b, ()) for a, b in pairwise(numbers))
        if read and all(number in first for number in numbers):
            kept += lists[name]
    return sorted(kept, key=lambda layer: first[index[layer]])


def _inside(name: str, other: str) -> bool:
    """Whether a list lies in a layer of another one."""
    return name != other and (not other or name.startswith(f"{other}."))


def _walk(graph: fx.Graph, split: Split) -> tuple[dict[int, int], dict[int, set[int]]]:
    """The place of the first op of every layer, and the layers that are read in it."""
    first: dict[int, int] = {}
    before: dict[int, set[int]] = {}
    behind: dict[fx.Node, frozenset[int]] = {}
    for place, node in enumerate(graph.nodes):
        if node.op != "call_function":
            continue
        above = frozenset[int]().union(*(behind.get(x, ()) for x in node.all_input_nodes))
        mine = split.of(info(node).module)
        if mine is not None:
            first.setdefault(mine, place)
            before.setdefault(mine, set()).update(above)
        behind[node] = above if mine is None else above | {mine}
    return first, before


@dataclass(frozen=True, slots=True)
class OnChain:
    """Which layer computes an op: its own one, or else the last one that it reads.

    What reads none goes to the first one that reads it.

    Attributes:
        layer_of: of ops and parameters.
        anywhere: ops that are made in every stage that reads them.
        together: layers that go with the one before, since a value goes back over the cut.
    """

    layer_of: Mapping[fx.Node, int]
    anywhere: frozenset[fx.Node]
    together: frozenset[int]


def on_chain(program: LocalProgram, layers: Sequence[str]) -> OnChain:
    """Who computes what, as `assign_stages` would say if every layer were a stage."""
    split = Split({layer: i for i, layer in enumerate(layers)}, len(layers))
    params = {leaf.node for leaf in program.leaves if leaf.kind is LeafKind.PARAM}
    nodes = [n for n in program.graph.nodes if n.op in ("call_function", "placeholder")]
    layer_of: dict[fx.Node, int] = {}
    trained, together = set[fx.Node](), set[int]()
    for node in nodes:
        if node.name in params or any(x in trained for x in node.all_input_nodes):
            trained.add(node)
        before = [layer_of[x] for x in node.all_input_nodes if x in layer_of]
        stated = split.of(info(node).module) if node.op == "call_function" else None
        known = before if stated is None else [*before, stated]
        if known:
            layer_of[node] = max(known)
        if stated is not None and known:
            together.update(range(stated + 1, max(known) + 1))
    free = [n for n in nodes if n not in layer_of and n not in trained and not _draws(n)]
    for node in reversed(nodes):
        if node not in layer_of:
            layer_of[node] = min((layer_of[u] for u in node.users if u in layer_of), default=0)
    return OnChain(layer_of, frozenset(free), frozenset(together))


def _draws(node: fx.Node) -> bool:
    if node.op != "call_function":
        return False
    rule = find(node.target)
    return rule is not None and rule.draws(Call(node))
