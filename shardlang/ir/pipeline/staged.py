"""A step of several microbatches that several stages compute."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import fx

from shardlang.ir.accumulated import AccumulatedStep, Piece
from shardlang.ir.node import info
from shardlang.ir.pipeline.action import Work
from shardlang.ir.pipeline.stage import StageProgram


@dataclass(frozen=True, slots=True)
class StagedStep:
    """What the ranks of a pipeline run for one step.

    Attributes:
        whole: the step as one device would run it: `early` is made in every stage, and `finish` in
            the one that makes the last totals.
        stages: forward and backward of each stage.
        reduces: what each stage does once with its summed parts of gradients.
        tied: of a parameter that is a copy of another stage's, that one: their gradients are added.
    """

    whole: AccumulatedStep
    stages: tuple[StageProgram, ...]
    reduces: tuple[Piece, ...]
    tied: Mapping[str, str]


def nodes_of(stage: StageProgram, work: Work) -> list[fx.Node]:
    """The calls that an action is made of, in order.

    The gradients of a stage's inputs are all that leads to a gradient for another stage; those of
    its weights are the rest, so the first stage has no others.
    """
    calls = [node for node in stage.step.graph.nodes if node.op == "call_function"]
    if work is Work.FORWARD:
        return [node for node in calls if not info(node).backward]
    back = [node for node in calls if info(node).backward]
    if work is Work.BACKWARD:
        return back
    _, gradients = stage.step.returned
    pairs = zip(stage.step.gradients, gradients, strict=True)
    asked = _before([node for name, node in pairs if name in stage.returns])
    return [node for node in back if (node in asked) is (work is Work.INPUT)]


def _before(ends: Iterable[fx.Node]) -> set[fx.Node]:
    """What some values are made of, themselves included."""
    found: set[fx.Node] = set()
    todo = list(ends)
    while todo:
        node = todo.pop()
        if node not in found:
            found.add(node)
            todo += node.all_input_nodes
    return found
