"""The best choices between keeping all and keeping least, and what lies between two of them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import networkx as nx
from torch import fx

from shardlang.passes.step.cut import Choice, Cut

MOST_CUTS = 24
"""Cuts that are made for one step at most; a choice between two of them is put together."""


def hull(cut: Cut, below_work: float = math.inf) -> list[Choice]:
    """The choices that are cheapest at some price of a byte, in the order of their work.

    Args:
        below_work: of those that do not take less, some are left out.
    """
    first, last = cut.least_work(), cut.fewest_bytes()
    left = _Left(MOST_CUTS, below_work)
    return list(dict.fromkeys([first, *_inside(cut, first, last, left), last]))


@dataclass(slots=True)
class _Left:
    """How many cuts may still be made, and below which work they are of use."""

    cuts: int
    below_work: float


def _inside(cut: Cut, one: Choice, other: Choice, left: _Left) -> Iterator[Choice]:
    """Those between two, by the price at which both cost as much."""
    per_byte, per_work = other.work - one.work, one.bytes - other.bytes
    if per_byte <= 0 or per_work <= 0 or not left.cuts or one.work >= left.below_work:
        return
    left.cuts -= 1
    made = cut.cheapest(per_byte, per_work)
    if per_byte * made.bytes + per_work * made.work < per_byte * one.bytes + per_work * one.work:
        yield from _inside(cut, one, made, left)
        yield made
        yield from _inside(cut, made, other, left)


@dataclass(frozen=True, slots=True)
class Part:
    """Values that one choice computes again and the one before it on the hull does not.

    Attributes:
        gain: bytes that are then not kept.
        work: operations that it takes.
    """

    nodes: frozenset[fx.Node]
    gain: int
    work: int


def parts_of(cut: Cut, choices: Sequence[Choice]) -> list[Part]:
    """The steps of a hull, each apart where nothing of it reads the other."""
    return [
        part for one, other in itertools.pairwise(choices) for part in _between(cut, one, other)
    ]


def _between(cut: Cut, one: Choice, other: Choice) -> Iterator[Part]:
    more, net = other.again - one.again, nx.Graph()
    net.add_nodes_from(node for node in cut.forward if node in more)
    net.add_edges_from((n, source) for n in more for source in n.all_input_nodes if source in more)
    for nodes in nx.connected_components(net):
        made = cut.choice(one.again | nodes)
        yield Part(frozenset(nodes), one.bytes - made.bytes, made.work - one.work)


def packed(cut: Cut, first: Choice, parts: Sequence[Part], most_bytes: int) -> Choice | None:
    """The parts of a hull with the least work that keep no more than some bytes.

    A knapsack, solved as an integer program; a part comes with the earlier ones that it touches.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp

    gains = LinearConstraint([[part.gain for part in parts]], lb=first.bytes - most_bytes)
    order = [_row(len(parts), late, early) for late, early in _touching(parts)]
    rules = [gains, LinearConstraint(order, ub=0)] if order else [gains]
    work = [part.work for part in parts]
    found = milp(work, constraints=rules, integrality=[1] * len(parts), bounds=Bounds(0, 1))
    if found.x is None:
        return None
    taken = [part.nodes for part, value in zip(parts, found.x, strict=True) if value > 0.5]
    made = cut.choice(first.again.union(*taken))
    return made if made.bytes <= most_bytes else None


def _row(count: int, late: int, early: int) -> list[int]:
    """The coefficients that say that one part is not taken without another."""
    row = [0] * count
    row[late], row[early] = 1, -1
    return row


def _touching(parts: Sequence[Part]) -> Iterator[tuple[int, int]]:
    """The pairs of parts of which the later reads the earlier, or the other way round."""
    of = {node: place for place, part in enumerate(parts) for node in part.nodes}
    for late, part in enumerate(parts):
        beside = {of.get(n) for node in part.nodes for n in (*node.all_input_nodes, *node.users)}
        yield from ((late, early) for early in beside if early is not None and early < late)
