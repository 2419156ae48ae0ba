"""Experts that a model writes by hand, known by their shape and by the router that weighs them.

A *router* is a product with a small matrix whose result, one score for each expert, goes through a
softmax, a sigmoid or a choice of the largest. Experts are as many matrices as the router has
scores: stacked in one parameter `[experts, in, out]`, or parts of a list; what is computed with
them is multiplied by the scores, or they are picked by what was chosen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby

import networkx as nx
import torch
from torch import fx

from shardlang.init.chains import Dims
from shardlang.init.choose import Site
from shardlang.ir.graph import producer, sharding_of
from shardlang.ir.node import info, tensor_of
from shardlang.ir.traits import OpKind
from shardlang.rules.registry import traits_of

_CHOOSES = {OpKind.SOFTMAX, OpKind.GATE, OpKind.CHOICE}
"""What is done with a router's result: scores are made of it, or the largest are chosen."""


@dataclass(frozen=True, slots=True)
class Router:
    """A product that scores experts.

    Attributes:
        names: the parameters that it multiplies by.
        count: the number of experts.
        reach: what is computed from the scores and is no larger than they are.
    """

    names: frozenset[str]
    count: int
    reach: frozenset[fx.Node]

    @property
    def container(self) -> str:
        """The module that holds the router, with a dot after it."""
        parts = min(self.names).split(".")[:-2]
        return "".join(f"{part}." for part in parts)


class Experts:
    """The search for experts in one model."""

    def __init__(self, dims: Dims, sites: Iterable[Site]) -> None:
        self.dims = dims
        self.sites = {site.node: site for site in sites}
        self.net = nx.DiGraph(
            (node, use.reader) for node, uses in dims.uses.items() for use in uses
        )
        self.net.add_nodes_from(dims.uses)
        self.nodes = {leaf.name: node for node, leaf in dims.params.items()}
        self.shapes = {n: tuple(tensor_of(node).shape) for n, node in self.nodes.items()}
        self.routers = list(self._routers())

    def stacked(self) -> list[str]:
        """Parameters whose first dim counts the experts of a router."""
        return [
            name
            for name, shape in self.shapes.items()
            if len(shape) > 2 and any(self._is_stack(name, router) for router in self.routers)
        ]

    def listed(self) -> list[str]:
        """Parameters of experts that are parts of a list, or a stack that is read one by one."""
        found: dict[str, None] = {}
        for router in self.routers:
            found |= dict.fromkeys(self._one_by_one(router))
            for items in self._lists(router):
                if all(self._is_weighed(item, names, router) for item, names in items.items()):
                    found |= dict.fromkeys(name for names in items.values() for name in names)
        return list(found)

    def _one_by_one(self, router: Router) -> list[str]:
        """Stacks of which every expert takes its own matrix by an index."""
        stacks = {
            name
            for name, shape in self.shapes.items()
            if len(shape) > 2 and shape[0] == router.count and self._is_indexed(name)
        }

        def own(user: fx.Node) -> bool:
            return self._sources(user) <= stacks

        return [name for name in self.shapes if name in stacks and self._meets(name, router, own)]

    def _is_indexed(self, name: str) -> bool:
        users = list(self.net[self.nodes[name]])
        return bool(users) and all(_takes_one(user, self.shapes[name]) for user in users)

    def _sources(self, user: fx.Node) -> set[str]:
        """The parameters that a product multiplies by; none for any other op."""
        site = self.sites.get(user)
        sources = self.dims.sources(site.place[0]) if site is not None else ()
        return {self.dims.params[one].name for one in sources}

    def _routers(self) -> Iterator[Router]:
        for node, site in self.sites.items():
            val = info(node).value
            if site.lookup or not isinstance(val, torch.Tensor) or not 1 < val.dim() < 4:
                continue
            names = self._sources(node)
            reach = self._reach(node)
            if val.shape[-1] > 1 and names and any(map(_chooses, reach)):
                yield Router(frozenset(names), val.shape[-1], frozenset(reach))

    def _reach(self, node: fx.Node) -> set[fx.Node]:
        """What is computed from a router's result, by no product, and is no larger."""
        room = tensor_of(node).numel()
        small: Callable[[fx.Node], bool] = lambda user: (  # noqa: E731
            user not in self.sites and all(part.numel() <= room for part in _parts(user))
        )
        return set(self._walk(node, small))

    def _walk(self, start: fx.Node, may: Callable[[fx.Node], bool]) -> Iterator[fx.Node]:
        """A value and all that is computed from it through ops that may be entered."""
        net = nx.subgraph_view(self.net, filter_node=lambda node: node is start or may(node))
        made: Iterator[fx.Node] = nx.dfs_preorder_nodes(net, start)
        return made

    def _is_stack(self, name: str, router: Router) -> bool:
        if self.shapes[name][0] != router.count or name in router.names:
            return False
        return self._meets(name, router, lambda user: _counts(user, router.count))

    def _is_weighed(self, item: str, names: list[str], router: Router) -> bool:
        """Whether what one part of a list computes is weighed by the scores."""
        matrices = [name for name in names if len(self.shapes[name]) > 1]

        def own(user: fx.Node) -> bool:
            mine = all(name.startswith(item) for name in self._sources(user))
            return mine or _counts(user, router.count)

        return bool(matrices) and all(self._meets(name, router, own) for name in matrices)

    def _meets(self, name: str, router: Router, may: Callable[[fx.Node], bool]) -> bool:
        """Whether something computed from a parameter meets the scores in one op."""
        beside: Callable[[fx.Node], bool] = lambda user: user not in router.reach and may(user)  # noqa: E731
        for node in self._walk(self.nodes[name], beside):
            for user in self.net[node]:
                if any(producer(value)[0] in router.reach for value in self.dims.operands[user]):
                    return True
        return False

    def _lists(self, router: Router) -> Iterator[dict[str, list[str]]]:
        """Lists beside the router with as many parts, alike in their shapes."""
        places: dict[str, dict[str, list[str]]] = {}
        for name in self.shapes:
            if name.startswith(router.container) and name not in router.names:
                for head, item in _numbered(name, len(router.container)):
                    places.setdefault(head, {}).setdefault(item, []).append(name)
        for items in places.values():
            if len(items) == router.count and self._alike(items):
                yield items

    def _alike(self, items: dict[str, list[str]]) -> bool:
        """Whether the parts of a list have the same parameters."""
        kinds = [[(n[len(item) :], self.shapes[n]) for n in names] for item, names in items.items()]
        return len(list(groupby(kinds))) == 1


def _numbered(name: str, start: int) -> Iterator[tuple[str, str]]:
    """The lists that a name is in, each with the part of it: `ffs.` and `ffs.3.`."""
    at = start
    for part in name[start:].split("."):
        end = at + len(part)
        if part.isdecimal():
            yield name[:at], name[: end + 1]
        at = end + 1


def _chooses(node: fx.Node) -> bool:
    return traits_of(node).kind in _CHOOSES


def _parts(node: fx.Node) -> list[torch.Tensor]:
    val = info(node).value
    parts = val if isinstance(val, (list, tuple)) else [val]
    return [part for part in parts if isinstance(part, torch.Tensor)]


def _takes_one(node: fx.Node, stack: tuple[int, ...]) -> bool:
    """Whether an op takes single matrices out of a stack."""
    parts = [tuple(part.shape) for part in _parts(node)]
    return traits_of(node).is_view and all(part == stack[1:] for part in parts)


def _counts(node: fx.Node, count: int) -> bool:
    """Whether an op keeps apart what each of so many experts gives."""
    return node.op == "call_function" and count in {
        sharding_of(node).rule.size(name) for name in sharding_of(node).rule.outer
    }
