"""Making a picture small: preparation in one box, light ops together, repeated layers once.

Each function takes a picture and returns a smaller one of the same program.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace

import networkx as nx

from shardlang.graph.picture import Arrow, Box, BoxKind, Picture, common_module

Joinable = Callable[[Box, Box], bool]


def join_preparation(picture: Picture) -> Picture:
    """Join what depends on no parameter (positions, masks, rotary tables), as far as it hangs
    together, into one box each."""
    side = _without_parameters(picture)

    def joined(boxes: list[Box]) -> Box | None:
        ops = [box for box in boxes if box.kind is BoxKind.OP]
        return _prepared(ops) if ops else None

    return _join(picture, lambda one, other: {one.id, other.id} <= side, joined)


def _without_parameters(picture: Picture) -> set[str]:
    """Ops, buffers and constants that no parameter leads to, and that are not only copies."""
    into = picture.into()
    side: set[str] = set()
    tainted: set[str] = set()
    for name, box in picture.boxes.items():
        sources = [arrow.source for arrow in into[name]]
        gathers = box.kind is BoxKind.RESHARD and not sources
        parameters = box.kind is BoxKind.PARAM or box.params or gathers
        if parameters or any(source in tainted for source in sources):
            tainted.add(name)
        elif box.kind in (BoxKind.OP, BoxKind.BUFFER, BoxKind.CONSTANT):
            side.add(name)
    return side


def _prepared(ops: list[Box]) -> Box:
    if len(ops) == 1:
        return ops[0]
    module = common_module([op.module for op in ops])
    lines = (f"{len(ops)} ops without parameters", _most([op.op for op in ops]))
    first = ops[0]
    return replace(first, module=module, lines=lines, op="prepare", light=False)


def join_light(picture: Picture) -> Picture:
    """Join neighbouring pointwise ops of one module into one box."""
    return _join(picture, _alike, _joined)


def join_siblings(picture: Picture) -> Picture:
    """Join pointwise ops, or ops of a backward, that read one box and stand in one module."""
    pairs = [
        ends
        for arrows in picture.out_of().values()
        for ends in itertools.pairwise(_readers_in_order(picture, arrows))
    ]
    return _join(picture, _alike, _joined, pairs)


def _readers_in_order(picture: Picture, arrows: list[Arrow]) -> list[str]:
    """The targets of some arrows, those of one module beside one another."""
    names = [arrow.target for arrow in arrows]
    return sorted(names, key=lambda name: picture.boxes[name].module)


def _join(
    picture: Picture,
    joinable: Joinable,
    write: Callable[[list[Box]], Box | None],
    pairs: Iterable[tuple[str, str]] | None = None,
) -> Picture:
    """Join boxes into groups, as long as that makes no circle of arrows.

    Args:
        write: the box of a group of several; None keeps them apart.
        pairs: what may be joined; neighbours if not given.
    """
    order = {name: i for i, name in enumerate(picture.boxes)}
    names: dict[str, str | None] = {}
    joined: dict[str, Box] = {}
    pairs = picture.arrows if pairs is None else pairs
    for name, members in _groups(picture, joinable, order, pairs).items():
        boxes = [picture.boxes[member] for member in sorted(members, key=order.__getitem__)]
        box = write(boxes) if len(boxes) > 1 else None
        if box is not None:
            names.update(dict.fromkeys(members, name))
            joined[name] = replace(box, id=name)
    made = picture.renamed(names)
    made.boxes = {name: joined.get(name, box) for name, box in made.boxes.items()}
    return made


def _groups(
    picture: Picture, joinable: Joinable, order: dict[str, int], pairs: Iterable[tuple[str, str]]
) -> dict[str, list[str]]:
    """Groups by the name of their first member."""
    net = nx.DiGraph()
    net.add_nodes_from(order)
    net.add_edges_from(picture.arrows)
    group = {name: name for name in order}
    members = {name: [name] for name in order}
    for source, target in sorted(pairs, key=lambda ends: (order[ends[1]], order[ends[0]])):
        one, other = group[source], group[target]
        if one == other or not joinable(picture.boxes[source], picture.boxes[target]):
            continue
        ends = [max(order[name] for name in members[end]) for end in (one, other)]
        if all(
            _only_direct(net, *way, order, last)
            for way, last in (((one, other), ends[1]), ((other, one), ends[0]))
        ):
            kept, gone = sorted((one, other), key=order.__getitem__)
            for name in members.pop(gone):
                group[name] = kept
                members[kept].append(name)
            _contract(net, kept, gone)
    return members


def _alike(one: Box, other: Box) -> bool:
    light = one.light and other.light
    ops = one.kind is other.kind is BoxKind.OP and one.again == other.again
    return light and ops and one.module == other.module


def _only_direct(net: nx.DiGraph, one: str, other: str, order: dict[str, int], last: int) -> bool:
    """Whether nothing lies between one and another, so that joining them makes no circle.

    A group has the name of its first member, so what comes after `last` leads nowhere.
    """
    between = nx.subgraph_view(
        net,
        filter_node=lambda name: order[name] <= last,
        filter_edge=lambda source, target: (source, target) != (one, other),
    )
    return order[one] > last or not nx.has_path(between, one, other)


def _contract(net: nx.DiGraph, one: str, other: str) -> None:
    net.add_edges_from((source, one) for source in list(net.predecessors(other)) if source != one)
    net.add_edges_from((one, target) for target in list(net.successors(other)) if target != one)
    net.remove_node(other)


def _joined(boxes: list[Box]) -> Box:
    names = tuple(name for box in boxes for name in box.names)
    reads = tuple(dict.fromkeys(name for box in boxes for name in box.reads))
    params = tuple(lines for box in boxes for lines in box.params)
    return replace(boxes[0], lines=(_most(names),), names=names, params=params, reads=reads)


def _most(names: Iterable[str], count: int = 5) -> str:
    """The names in order, each once with its number, the rest left out."""
    counts = Counter(name.strip("_") for name in names)
    texts = [name if n == 1 else f"{name} ×{n}" for name, n in counts.items()]
    return ", ".join(texts[:count]) + (", …" if len(texts) > count else "")


def place_reshards(picture: Picture) -> Picture:
    """Stand every gather in the innermost module around all that read it."""
    out = picture.out_of()
    made = picture.renamed({})
    for name, box in picture.boxes.items():
        if box.kind is BoxKind.RESHARD and box.op not in ("all_reduce", "reduce_scatter"):
            readers = [picture.boxes[arrow.target].module for arrow in out[name]]
            made.boxes[name] = replace(box, module=common_module(readers))
    return made


def join_parameters(picture: Picture) -> Picture:
    """Write a parameter into the box of the op that alone reads it."""
    out = picture.out_of()
    names: dict[str, str | None] = {}
    params: dict[str, list[tuple[str, ...]]] = {}
    for name, box in picture.boxes.items():
        readers = out[name]
        if box.kind is BoxKind.PARAM and len(readers) == 1:
            reader = picture.boxes[readers[0].target]
            if reader.kind is BoxKind.OP and reader.module == box.module:
                names[name] = None
                needs = readers[0].lines[-1:] if readers[0].moves else ()
                params.setdefault(reader.id, []).append((*box.lines, *needs))
    made = picture.renamed(names)
    for name, lines in params.items():
        made.boxes[name] = replace(made.boxes[name], params=tuple(lines))
    return made


def join_modules(picture: Picture) -> Picture:
    """Draw a module with a single op as a box, its collectives beside it."""
    made = picture.renamed({})
    found: dict[str, list[Box]] = {}
    for box in picture.boxes.values():
        found.setdefault(box.module, []).append(box)
    for module, boxes in found.items():
        ops = [box for box in boxes if box.kind is BoxKind.OP]
        parent, _, name = module.rpartition(".")
        inner = any(other.startswith(f"{module}.") for other in found)
        if not module or inner or len(ops) != 1 or name.isdigit() or _has_leaf(boxes):
            continue
        for box in boxes:
            title = name if box is ops[0] else ""
            made.boxes[box.id] = replace(box, module=parent, title=title)
    return made


def _has_leaf(boxes: list[Box]) -> bool:
    return any(box.kind in (BoxKind.PARAM, BoxKind.BUFFER, BoxKind.CONSTANT) for box in boxes)
