"""What every action of a pipeline takes, on the first device: operations, and seconds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import torch
from torch import fx

from shardlang.cost.clock import seconds_of_nodes, sending_s
from shardlang.cost.effects import Held, TensorType
from shardlang.cost.flops import flops_of, types_in
from shardlang.cost.replay import Replay
from shardlang.cost.speeds import Speeds
from shardlang.cost.timeline import alike
from shardlang.ir.pipeline.action import Action, Work
from shardlang.ir.pipeline.stage import StageProgram
from shardlang.ir.pipeline.staged import StagedStep, nodes_of
from shardlang.ir.step import is_collective, is_wait, pull
from shardlang.ir.step import record as recorded

_GRADIENTS = 2
"""Each product of a recorded op has two operands, and the gradient of each takes as many."""


@dataclass(frozen=True, slots=True)
class StageWork:
    """What the actions of a stage compute, for one microbatch.

    Attributes:
        flops: floating-point operations of the products in each action.
        seconds: how long each action takes; None where nothing is known of the devices.
    """

    flops: Mapping[Work, int]
    seconds: Mapping[Work, float] | None = None

    @property
    def together(self) -> int:
        """Forward and backward."""
        return self.flops[Work.FORWARD] + self.flops[Work.BACKWARD]


def stage_work(step: StagedStep, speeds: Speeds | None = None) -> tuple[StageWork, ...]:
    """What every stage computes, of its first and so largest microbatch.

    What is done element by element is not counted, as the rules of the ops say.

    Args:
        speeds: those of the devices, by which actions take seconds: those of their products, and
            of their collectives as far as they are waited for. A model without products has none.
    """
    with ThreadPoolExecutor(1) as thread:
        products = thread.submit(_Products, step).result()
    if not products.types:
        speeds = None
    return tuple(_work_of(stage, products, speeds) for stage in step.stages)


def _work_of(stage: StageProgram, products: _Products, speeds: Speeds | None) -> StageWork:
    """What a stage computes."""
    parts = {work: nodes_of(stage, work) for work in Work}
    flops = {work: sum(products.flops[x.name] for x in nodes) for work, nodes in parts.items()}
    if speeds is None:
        return StageWork(flops)
    computing, sending = partial(products.seconds, speeds), partial(sending_s, speeds)
    return StageWork(
        flops, {work: seconds_of_nodes(nodes, computing, sending) for work, nodes in parts.items()}
    )


def durations(work: tuple[StageWork, ...]) -> Callable[[Action], float]:
    """How long an action takes: seconds, or operations where no seconds are known.

    Of a model without products of matrices, where no seconds are known, actions are alike: a
    backward takes two, all others one.
    """
    if all(stage.seconds is None for stage in work):
        if not any(stage.together for stage in work):
            return alike
        return lambda action: float(work[action.stage].flops[action.work])
    return lambda action: (work[action.stage].seconds or {}).get(action.work, 0.0)


class _Products:
    """The products of a step on its first device.

    Attributes:
        flops: the operations of every node, by name.
        types: the types that are multiplied, by name; of nodes with operations alone.
    """

    def __init__(self, step: StagedStep) -> None:
        main = step.whole.main
        replay = Replay(main, next(iter(main.mesh.coords())), "gloo")
        replay.run()
        self.flops, self.types = Counter[str](), dict[str, torch.dtype]()
        for node in main.graph.nodes:
            if node.op == "call_function":
                self.flops[node.name] = _of(node, replay, self.flops)
                if self.flops[node.name]:
                    self.types[node.name] = _multiplied(node, replay)

    def seconds(self, speeds: Speeds, node: fx.Node) -> float:
        """How long a node computes."""
        dtype = self.types.get(node.name)
        return 0.0 if dtype is None else speeds.computing_s(self.flops[node.name], dtype)


def _multiplied(node: fx.Node, replay: Replay) -> torch.dtype:
    """The type of the first tensor that a product reads, or that its recorded op reads."""
    nodes = [x for one in (node, *_records(node)) for x in one.all_input_nodes]
    found = (one.dtype for x in nodes for one in types_in(replay.made.get(x)))
    return next(one for one in found if one.is_floating_point)


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
