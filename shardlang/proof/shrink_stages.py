"""shrink, of a pipeline: fewer layers, and the same stages, schedule and sends between them."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

from shardlang.compiler.build import build_graph
from shardlang.compiler.driver import Compiled
from shardlang.compiler.pipelined import schedule_of
from shardlang.compiler.stages import split_of
from shardlang.ir.node import info
from shardlang.proof.shrunk import CannotShrink, smaller
from shardlang.spec.types import Spec

KEPT_LAYERS = 2


def layers_to_keep(spec: Spec, layers: int) -> int:
    """How many layers of a list stay: two, or one for each stage of a pipeline.

    A remainder over the stages stays. All layers stay where the spec lists them stage by stage.

    Raises:
        CompileError: the schedule does not fit.
    """
    if spec.pipeline is None:
        return KEPT_LAYERS
    if spec.pipeline.split.stages:
        return layers
    stages = schedule_of(spec).stages
    return smaller(layers, stages, max(stages, KEPT_LAYERS))


def devices_of(spec: Spec) -> int:
    """How many devices may split a tensor: those along the axis of a pipeline do not."""
    stated = spec.pipeline
    return math.prod(a.size for a in spec.mesh.axes if stated is None or a.name != stated.axis)


def check_same_stages(large: Compiled, small: Compiled) -> None:
    """Compare what the stages of two models send to one another.

    Raises:
        CannotShrink: it differs; the message names two stages.
        CompileError: the small model cannot be split as stated.
    """
    if large.spec.pipeline is None:
        return
    ours, theirs = sent_between(large), sent_between(small)
    for pair in sorted(ours.keys() | theirs.keys()):
        if ours[pair] != theirs[pair]:
            source, target = pair
            raise CannotShrink(
                f"in the smaller model stage {source} sends {theirs[pair]} values to stage"
                f" {target}, instead of {ours[pair]}"
            )


def sent_between(compiled: Compiled) -> Counter[tuple[int, int]]:
    """How many values of the model each stage sends to each other one."""
    split = split_of(compiled, schedule_of(compiled.spec).stages)
    graph = build_graph(compiled.captured, replace(compiled.statements, split=split))
    return Counter(
        (source, target)
        for node in graph.graph.nodes
        if node.op == "call_function" and (source := info(node).stage) is not None
        for target in {info(user).stage for user in node.users if user.op != "output"} - {source}
        if target is not None
    )
