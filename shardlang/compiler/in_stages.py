"""The program of a pipeline as its devices hold it: each has the parameters of its own stages.

A parameter lies whole at one place along the axis of the pipeline. Buffers, and parameters without
dims, lie on every device.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from shardlang.compiler.at_model import at_model
from shardlang.compiler.build import build_graph
from shardlang.compiler.driver import Compiled, CompileError
from shardlang.compiler.pipelined import axis_of, schedule_of
from shardlang.compiler.stages import split_of
from shardlang.ir.graph import ShardError
from shardlang.ir.leaf import LeafKind
from shardlang.ir.node import info


def in_stages(compiled: Compiled) -> Compiled:
    """The same, with every parameter where its stage is computed.

    Raises:
        CompileError: the model cannot be split as stated.
    """
    ranks, axis = _ranks(compiled), axis_of(compiled)

    leaves = tuple(
        leaf.held_at(axis, ranks[leaf.name]) if leaf.kind is LeafKind.PARAM else leaf
        for leaf in compiled.program.leaves
    )
    return replace(compiled, program=replace(compiled.program, leaves=leaves))


def _ranks(compiled: Compiled) -> Mapping[str, int]:
    """Where along the axis each parameter lies: with the first of its stages."""
    schedule = schedule_of(compiled.spec)
    split = split_of(compiled, schedule.stages)
    try:
        graph = build_graph(compiled.captured, replace(compiled.statements, split=split))
    except ShardError as failure:
        raise CompileError([at_model(failure, compiled.spec)]) from failure
    rank_of = schedule.rank_of()
    return {
        leaf.name: rank_of[info(node).stage or 0]
        for node, leaf in graph.placeholders()
        if leaf.kind is LeafKind.PARAM and leaf.tied is None
    }
