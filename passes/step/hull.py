"""The best choices between keeping all and keeping least, and what lies between two of them."""

from __future__ import annotations

from collections.abc import Iterator

import networkx as nx
from torch import fx

from shardlang.passes.step.cut import Choice, Cut

MOST_CUTS = 24
"""Cuts that are made for one step at most; a choice between two of them is put together."""


def hull(cut: Cut) -> list[Choice]:
    """The choices that are cheapest at some price of a byte, in the order of their work."""
    first, last = cut.least_work(), cut.fewest_bytes()
    return list(dict.fromkeys([first, *_inside(cut, first, last, [MOST_CUTS]), last]))


def _inside(cut: Cut, one: Choice, other: Choice, left: list[int]) -> Iterator[Choice]:
    """Those between two, by the price at which both cost as much."""
    per_byte, per_work = other.work - one.work, one.bytes - other.bytes
    if per_byte <= 0 or per_work <= 0 or not left[0]:
        return
    left[0] -= 1
    made = cut.cheapest(per_byte, per_work)
    if per_byte * made.bytes + per_work * made.work < per_byte * one.bytes + per_work * one.work:
        yield from _inside(cut, one, made, left)
        yield made
        yield from _inside(cut, made, other, left)


def between(cut: Cut, one: Choice, other: Choice) -> list[Choice]:
    """The choices that compute again more and more of what the second does beside the first.

    What is computed again together goes together, that first which saves the most for its work; of
    equals that first which the forward makes first, since it is needed last.
    """
    again, made = set(one.again), [one]
    for part in _parts(cut, one, other):
        again |= part
        made.append(cut.choice(again))
    return [*made, other]


def _parts(cut: Cut, one: Choice, other: Choice) -> list[set[fx.Node]]:
    """What is computed again in the second alone, apart where nothing of it reads the other."""
    more, net = other.again - one.again, nx.Graph()
    net.add_nodes_from(node for node in cut.forward if node in more)
    net.add_edges_from((n, source) for n in more for source in n.all_input_nodes if source in more)
    parts = [set(part) for part in nx.connected_components(net)]
    choices = [cut.choice(one.again | part) for part in parts]
    order = {node: place for place, node in enumerate(cut.forward)}

    def rank(place: int) -> tuple[float, int]:
        gain, work = one.bytes - choices[place].bytes, choices[place].work - one.work
        return -gain / max(work, 1), min(order[n] for n in parts[place])

    return [parts[place] for place in sorted(range(len(parts)), key=rank)]
