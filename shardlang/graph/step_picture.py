"""The picture of a whole step: forward, backward and update, each a frame with its modules.

A phase is the outermost module of its boxes, so that frames, and layers that are drawn once, are
those of every picture.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, replace

from torch import fx

from shardlang.compiler.driver import Compiled
from shardlang.compiler.whole_step import WholeStep, half
from shardlang.grammar.words import counted
from shardlang.graph.fold import (
    join_light,
    join_modules,
    join_parameters,
    join_preparation,
    join_siblings,
    place_reshards,
)
from shardlang.graph.picture import Arrow, Box, BoxKind, Picture
from shardlang.graph.read import without_unread
from shardlang.graph.read_step import HalfReader, adjoint_types
from shardlang.graph.repeats import fold_repeats
from shardlang.graph.update_picture import CLIP, GRADIENTS, OPTIMIZER, update_picture
from shardlang.ir.accumulated import Piece
from shardlang.ir.leaf import Leaf
from shardlang.ir.node import returned_nodes
from shardlang.plan.moments import Phase

Fold = Callable[[Picture], Picture]

FORWARD: tuple[Fold, ...] = (
    join_preparation, join_light, place_reshards, join_parameters, join_modules,
)  # fmt: skip
BACKWARD: tuple[Fold, ...] = (join_light, join_siblings, place_reshards, join_modules)
"""What makes each half readable, in order."""


@dataclass(frozen=True, slots=True)
class Frame:
    """A part of a step: its title, how often a step runs it, and what is in it."""

    title: str
    picture: Picture
    times: int = 1


def step_picture(
    compiled: Compiled, step: WholeStep, factored: bool, phases: Collection[Phase]
) -> Picture:
    """The picture of some phases of a step."""
    made = Picture()
    for phase in Phase:
        for frame in _DRAWN[phase](compiled, step) if phase in phases else ():
            put(made, frame)
    names = (f"result {name}" for name in step.step.cotangents)
    ends = zip(names, _cotangents(step), strict=True)
    for source, target in (*ends, (GRADIENTS, CLIP), (CLIP, OPTIMIZER), (GRADIENTS, OPTIMIZER)):
        if {source, target} <= made.boxes.keys():
            made.connect(Arrow(source, target))
    return fold_repeats(made) if factored else made


def _forward(compiled: Compiled, step: WholeStep) -> Iterator[Frame]:
    results, _ = step.step.returned
    pairs = list(zip(step.step.results, results, strict=True))
    reader = HalfReader(half(step.step.graph, backward=False), _leaves(step), pairs)
    picture, several = folded(reader.picture(), FORWARD), step.accumulated
    if several is None:
        yield Frame("forward", picture)
        return
    each = several.axis.size
    if several.early.gives:
        yield Frame("before all microbatches", piece_picture(step, several.early, "totals"), each)
    yield Frame("forward, by microbatch", picture, each)
    yield Frame("behind all forwards", piece_picture(step, several.finish, several.loss.name))


def _backward(compiled: Compiled, step: WholeStep) -> Iterator[Frame]:
    forward, backward = (half(step.step.graph, backward=x) for x in (False, True))
    reader = HalfReader(
        backward, _leaves(step), (), frozenset(step.step.again.values()),
        frozenset(_cotangents(step)), adjoint_types(forward, step.step.adjoints),
    )  # fmt: skip
    picture, several = reader.picture(), step.accumulated
    apart = several is not None and computes(several.reduce)
    count = len(step.step.gradients)
    what = counted(count, "gradient") + (", summed" if several else "")
    ends = Box("parts" if apart else GRADIENTS, BoxKind.OUTPUT, "", (what,))
    give(picture, reader, step.step.returned[1], ends)
    picture = folded(picture, BACKWARD)
    if several is None:
        yield Frame("backward", picture)
        return
    yield Frame("backward, by microbatch", picture, several.axis.size)
    if apart:
        yield Frame("behind all backwards", piece_picture(step, several.reduce, GRADIENTS))


def _update(compiled: Compiled, step: WholeStep) -> Iterator[Frame]:
    yield Frame("update", update_picture(compiled, step))


_DRAWN: dict[Phase, Callable[[Compiled, WholeStep], Iterator[Frame]]] = {
    Phase.FORWARD: _forward,
    Phase.BACKWARD: _backward,
    Phase.UPDATE: _update,
}


def computes(piece: Piece) -> bool:
    return any(node.op == "call_function" for node in piece.graph.nodes)


def _cotangents(step: WholeStep) -> list[str]:
    return [n.name for n in half(step.step.graph, backward=True) if n.op == "placeholder"]


def _leaves(step: WholeStep) -> dict[str, Leaf]:
    return {leaf.node: leaf for leaf in step.step.leaves}


def folded(picture: Picture, folds: Iterable[Fold]) -> Picture:
    for smaller in folds:
        picture = smaller(picture)
    return without_unread(picture)


def piece_picture(step: WholeStep, piece: Piece, name: str) -> Picture:
    """What is done apart from the microbatches, of the sums over them."""
    nodes = [node for node in piece.graph.nodes if node.op != "output"]
    leaves = {k: leaf for k, leaf in _leaves(step).items() if leaf.name in piece.takes}
    reader = HalfReader(nodes, leaves)
    picture = reader.picture()
    picture.boxes = {name: replace(box, reads=()) for name, box in picture.boxes.items()}
    sums = Box(f"sums for {name}", BoxKind.INPUT, "", ("sums over microbatches",))
    for node in filter(reader.shows, nodes):
        if not all(reader.shows(reader.drawn(x)) for x in node.all_input_nodes):
            picture.add(sums)
            picture.connect(Arrow(sums.id, node.name))
    give(picture, reader, returned_nodes(piece.graph), Box(name, BoxKind.OUTPUT, "", (name,)))
    return folded(picture, BACKWARD)


def give(picture: Picture, reader: HalfReader, ends: Iterable[fx.Node], box: Box) -> None:
    """Let one box stand for all that is returned."""
    picture.add(box)
    for node in map(reader.drawn, ends):
        if reader.shows(node):
            picture.connect(Arrow(node.name, box.id))


def put(made: Picture, frame: Frame) -> dict[str, str]:
    """Add a part, its boxes in a frame of its own; gives their new names by the old ones."""
    names = {
        name: name if name not in made.boxes else f"{name}, {frame.title}"
        for name in frame.picture.boxes
    }
    for box in frame.picture.boxes.values():
        module = f"{frame.title}.{box.module}" if box.module else frame.title
        made.add(replace(box, id=names[box.id], module=module))
    for arrow in frame.picture.arrows.values():
        made.connect(replace(arrow, source=names[arrow.source], target=names[arrow.target]))
    if frame.times > 1:
        made.repeats[frame.title] = frame.title, frame.times
    return names
