"""The operations of every action of a pipeline, on the first device."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from torch import fx

from shardlang.cost.effects import Held, TensorType
from shardlang.cost.flops import flops_of
from shardlang.cost.replay import Replay
from shardlang.ir.pipeline.action import Action, Work
from shardlang.ir.pipeline.staged import StagedStep, nodes_of
from shardlang.ir.step import is_collective, is_wait, pull
from shardlang.ir.step import record as recorded

_GRADIENTS = 2
"""Each product of a recorded op has two operands, and the gradient of each takes as many."""


@dataclass(frozen=True, slots=True)
class StageWork:
    """Floating-point operations of the products in each action of a stage, for one microbatch."""

    flops: dict[Work, int]

    @property
    def together(self) -> int:
        """Forward and backward."""
        return self.flops[Work.FORWARD] + self.flops[Work.BACKWARD]


def stage_work(step: StagedStep) -> tuple[StageWork, ...]:
    """The operations of every stage, of its first and so largest microbatch.

    What is done element by element is not counted, as the rules of the ops say.
    """
    with ThreadPoolExecutor(1) as thread:
        by_name = thread.submit(_flops, step).result()
    return tuple(
        StageWork({work: sum(by_name[n.name] for n in nodes_of(stage, work)) for work in Work})
        for stage in step.stages
    )


def durations(work: tuple[StageWork, ...]) -> Callable[[Action], float]:
    """How long an action takes where a unit of time is one operation.

    A model without products of matrices has actions alike: a backward takes two, all others one.
    """
    if not any(stage.together for stage in work):
        return lambda action: 2.0 if action.work is Work.BACKWARD else 1.0
    return lambda action: float(work[action.stage].flops[action.work])


def _flops(step: StagedStep) -> Counter[str]:
    """The operations of every node, by name."""
    main = step.whole.main
    replay = Replay(main, next(iter(main.mesh.coords())), "gloo")
    replay.run()
    found = Counter[str]()
    for node in main.graph.nodes:
        if node.op == "call_function":
            found[node.name] = _of(node, replay, found)
    return found


def _of(node: fx.Node, replay: Replay, found: Counter[str]) -> int:
    if is_collective(node) or is_wait(node):
        return 0
    if node.target is pull:
        return _GRADIENTS * sum(found[x.name] for x in _records(node))
    values = [replay.made.get(x) for x in node.all_input_nodes]
    types = tuple(x.type for x in values if isinstance(x, Held) and isinstance(x.type, TensorType))
    return flops_of(node, types, replay.made.get(node)) if len(types) == len(values) else 0


def _records(node: fx.Node) -> list[fx.Node]:
    """The recorded op whose backward a node is."""
    sources = [source for x in node.all_input_nodes for source in (x, *x.all_input_nodes)]
    return list(dict.fromkeys(x for x in sources if x.target is recorded))
