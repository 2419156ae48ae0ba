"""Where collectives start and where they are waited for, and what is computed in between."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import fx

from shardlang.ir.graph import is_item
from shardlang.ir.node import info
from shardlang.ir.step import is_collective, is_start, is_wait, started_by
from shardlang.ir.views import gives_view


@dataclass(frozen=True, slots=True)
class Flight:
    """One collective between its start and its wait.

    Attributes:
        after: the last op before the start that computes; None if none does.
        beside: the ops that compute while it is in flight, in order.
        before: the first op behind the wait that computes; None if none does.
    """

    start: fx.Node
    wait: fx.Node
    after: fx.Node | None
    beside: tuple[fx.Node, ...]
    before: fx.Node | None

    @property
    def ends(self) -> tuple[str, str] | None:
        """The names of the ops behind which it starts, and before which it is waited for.

        Empty at the beginning or the end of a half; None if nothing is computed in between.
        """
        names = (node.name if node is not None else "" for node in (self.after, self.before))
        return (next(names), next(names)) if self.beside else None


def flights_of(nodes: Iterable[fx.Node]) -> dict[fx.Node, Flight]:
    """Every flight of a step, or of one half of it, by its start."""
    halves: dict[bool, list[fx.Node]] = {False: [], True: []}
    for node in nodes:
        halves[info(node).backward].append(node)
    return _flights(halves[False]) | _flights(halves[True])


def _flights(nodes: Iterable[fx.Node]) -> dict[fx.Node, Flight]:
    found: dict[fx.Node, Flight] = {}
    started: dict[fx.Node, int] = {}
    ended: list[tuple[fx.Node, int]] = []
    ops: list[fx.Node] = []
    for node in nodes:
        if is_start(node):
            started[node] = len(ops)
        elif is_wait(node):
            ended.append((node, len(ops)))
        elif computes(node):
            ops.append(node)
    for wait, end in ended:
        start = started_by(wait)
        first = started[start]
        after, before = ops[first - 1] if first else None, ops[end] if end < len(ops) else None
        found[start] = Flight(start, wait, after, tuple(ops[first:end]), before)
    return found


def computes(node: fx.Node) -> bool:
    """Whether a node computes something: it is no leaf, no view and no collective."""
    if node.op != "call_function" or is_item(node) or is_wait(node) or is_collective(node):
        return False
    return not gives_view(node.target)
