"""What lies in memory at every statement of a step, by kind."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from enum import Enum

from torch import fx

from shardlang.cost.heap import Heap
from shardlang.cost.replay import Replay
from shardlang.ir.collective import Collective
from shardlang.ir.collective import Kind as Change
from shardlang.ir.graph import is_item
from shardlang.ir.leaf import LeafKind
from shardlang.ir.step import StepProgram, collectives_of, is_collective, is_wait


class Kind(str, Enum):
    """What a storage holds."""

    PARAMETERS = "parameters"
    BUFFERS = "buffers"
    INPUTS = "inputs"
    OPTIMIZER = "optimizer state"
    GRADIENTS = "gradients"
    SAVED = "saved for the backward"
    GATHERED = "gathered parameters"
    OUTPUTS = "outputs"
    """Results, and the gradients of the results that the backward starts from."""
    TEMPORARIES = "temporaries"
    COMMUNICATION = "communication"
    """Messages and what arrives, beside gathered parameters."""

    __str__ = str.__str__


LEAVES = {LeafKind.PARAM: Kind.PARAMETERS, LeafKind.INPUT: Kind.INPUTS}
"""Kinds of leaves that are neither buffers nor constants."""


def kinds_in(replay: Replay) -> list[Kind]:
    """The kind of every storage of a step."""
    known = _Kinds(replay)
    return [known.of(number) for number in range(len(replay.storages))]


def left_in(heap: Heap, kinds: Sequence[Kind]) -> Mapping[Kind, int]:
    """The bytes of each kind behind the last statement.

    Args:
        kinds: of every storage.
    """
    found = Counter[Kind]()
    for storage, kind in zip(heap.storages, kinds, strict=True):
        found[kind] += storage.bytes if storage.died is None else 0
    return found


def over_time(heap: Heap, kinds: Sequence[Kind]) -> Iterator[Mapping[Kind, int]]:
    """For each statement, the bytes of each kind when it holds the most.

    Args:
        kinds: of every storage.
    """
    born, died = defaultdict[int, list[int]](list), defaultdict[int, list[int]](list)
    for number, storage in enumerate(heap.storages):
        born[storage.born].append(number)
        if storage.died is not None:
            died[storage.died].append(number)
    now = Counter[Kind]()
    for place, statement in enumerate([None, *heap.statements], -1):
        for number in born[place]:
            now[kinds[number]] += heap.storages[number].bytes
        if statement is not None:
            made = sum(heap.storages[number].bytes for number in born[place])
            beside = kind_within(statement.node)
            yield now + Counter({beside: max(statement.inside - made, 0)})
        for number in died[place]:
            now[kinds[number]] -= heap.storages[number].bytes


class _Kinds:
    """The kinds of the storages of a step."""

    def __init__(self, replay: Replay) -> None:
        self._replay, self._gathered = replay, gathered_in(replay.program)
        self._leaves = {leaf.node: leaf.kind for leaf in replay.program.leaves}

    def of(self, number: int) -> Kind:
        """The kind of a storage, from what it is at any time."""
        replay, maker = self._replay, self._replay.storages[number].maker
        if maker is not None and maker.op == "placeholder":
            kind = self._leaves.get(maker.name)
            return Kind.OUTPUTS if kind is None else LEAVES.get(kind, Kind.BUFFERS)
        if number in replay.gradients:
            return Kind.GRADIENTS
        if number in replay.returned:
            return Kind.OUTPUTS
        if maker in self._gathered:
            return Kind.GATHERED
        return Kind.SAVED if number in replay.saved else kind_within(maker)


def kind_within(node: fx.Node | None) -> Kind:
    """The kind of what a statement needs for itself."""
    sends = node is not None and (is_collective(node) or is_wait(node))
    return Kind.COMMUNICATION if sends else Kind.TEMPORARIES


def _keeps_all(collective: Collective) -> bool:
    return collective.sends or collective.kind is Change.NOTHING


def gathered_in(program: StepProgram) -> set[fx.Node]:
    """The collectives that send parameters, and the waits for them."""
    kinds = {leaf.node: leaf.kind for leaf in program.leaves}
    nodes = program.graph.find_nodes(op="placeholder")
    found = {node for node in nodes if kinds.get(node.name) is LeafKind.PARAM}
    for node in program.graph.nodes:
        pairs = collectives_of(node) if is_collective(node) else []
        if pairs and all(x in found and _keeps_all(collective) for x, collective in pairs):
            found.add(node)
        if (is_wait(node) or is_item(node)) and found.issuperset(node.all_input_nodes):
            found.add(node)
    return found.difference(nodes)
