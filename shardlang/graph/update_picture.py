"""The picture of an update: the optimizer, what it sends, and the gathers of new values."""

from __future__ import annotations

from dataclasses import replace

from shardlang.compiler.driver import Compiled
from shardlang.compiler.whole_step import WholeStep
from shardlang.graph.picture import Arrow, Box, BoxKind, Picture
from shardlang.graph.read_step import HalfReader
from shardlang.ir.printed_type import dtype_name
from shardlang.ir.step import UpdateProgram, is_collective
from shardlang.plan.calls import norm_of_gradients
from shardlang.plan.text import bytes_text

GRADIENTS, CLIP, OPTIMIZER = "gradients", "norm of the gradients", "optimizer"
"""The names of boxes by which the phases are joined."""


def update_picture(compiled: Compiled, step: WholeStep) -> Picture:
    """What follows the backward."""
    made = Picture()
    for row in norm_of_gradients(compiled.program, compiled.rule):
        lines = (f"{row.op} {'*'.join(row.axes)}", "norm of all gradients", bytes_text(row.bytes))
        made.add(Box(CLIP, BoxKind.RESHARD, "", lines, row.op))
    made.add(_optimizer(compiled))
    if step.update is None:
        return made
    held = {leaf.node for leaf in step.step.leaves if leaf.gathered is not None}
    made.add(Box("new values", BoxKind.OUTPUT, "", (f"new values of {len(held)} parameters",)))
    _add_gathers(made, step.update)
    return made


def _optimizer(compiled: Compiled) -> Box:
    precision = compiled.program.step.precision
    master = precision.master
    name = compiled.rule.title
    lines = [name, "on this device's parts"]
    lines += [f"master weights in {dtype_name(master)}"] if master is not None else []
    lines += ["undoes the factor of the loss"] if precision.loss_scale is not None else []
    return Box(OPTIMIZER, BoxKind.OP, "", tuple(lines), name)


def _add_gathers(made: Picture, update: UpdateProgram) -> None:
    """The gathers, from the optimizer to the values."""
    reader = HalfReader([node for node in update.graph.nodes if node.op != "output"], {})
    for node in filter(is_collective, update.graph.nodes):
        box = reader.box(node)
        made.add(replace(box, id=f"update {box.id}", reads=()))
        made.connect(Arrow(OPTIMIZER, f"update {box.id}"))
        made.connect(Arrow(f"update {box.id}", "new values"))
