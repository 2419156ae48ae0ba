"""A step program as text: one line per node, the same on every device and in every run.

    step
    mesh tp = 2
    p_up_weight = param "up.weight" trainable : f32[10@tp, 6]
    linear = linear(x, p_up_weight) : f32[7, 10@tp]
    all_reduce_start = start all_reduce[tp](linear_1) in activations
    all_reduce = wait(all_reduce_start) : f32[7, 6]
    backward
    cotangent_0 = gradient "loss" : f32[]
    return output "loss" div
    gradients "up.weight" mm

The text is to be read: it says of every collective what it gives, and of every copy that the
backward makes of what it is one.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import fx

from shardlang.ir.collective import ReduceOp
from shardlang.ir.layout import Layout
from shardlang.ir.leaf import Leaf
from shardlang.ir.mesh import product
from shardlang.ir.node import info
from shardlang.ir.printed_type import dtype_name, printed_type
from shardlang.ir.spelling import call_text, quoted, route_text, shown
from shardlang.ir.step import (
    StepProgram,
    collectives_of,
    is_bucket,
    is_collective,
    is_start,
    is_wait,
    routed_by,
    started_by,
    stream_of,
)
from shardlang.ir.step_options import StepOptions
from shardlang.ir.text import leaf_text, mesh_text, origin_clauses


def step_text(program: StepProgram, options: StepOptions, *, long: bool = False) -> str:
    """The text of a step program.

    Args:
        options: those that its passes take.
        long: with modules and source lines.
    """
    return "\n".join(_Printer(program, long).lines(options))


class _Printer:
    def __init__(self, program: StepProgram, long: bool) -> None:
        self.program, self.long = program, long
        self.leaves = {leaf.node: leaf for leaf in program.leaves}
        self.copies = {copy: value for value, copy in program.again.items()}

    def lines(self, options: StepOptions) -> Iterator[str]:
        """The head, both halves, and what is returned."""
        yield "step"
        yield f"mesh {mesh_text(self.program.mesh, frozenset())}"
        yield from _options(options)
        nodes = [node for node in self.program.graph.nodes if node.op != "output"]
        yield from (self._node(node) for node in nodes if not info(node).backward)
        yield "backward"
        yield from self._cotangents()
        back = (node for node in nodes if info(node).backward and node.op != "placeholder")
        yield from map(self._node, back)
        results, gradients = self.program.returned
        pairs = zip(self.program.results, results, strict=True)
        yield "return " + ", ".join(f"{x.kind} {quoted(x.name)} {node}" for x, node in pairs)
        made = zip(self.program.gradients, gradients, strict=True)
        yield "gradients " + ", ".join(f"{quoted(name)} {node}" for name, node in made)

    def _cotangents(self) -> Iterator[str]:
        given = self.program.graph.find_nodes(op="placeholder")[len(self.program.leaves) :]
        for name, node in zip(self.program.cotangents, given, strict=True):
            yield f"{node} = gradient {quoted(name)}{self._type(node)}"

    def _node(self, node: fx.Node) -> str:
        words = [f"{node} = {self._call(node)}{self._type(node)}"]
        if node.name in self.copies:
            words.append(f"again {self.copies[node.name]}")
        words += origin_clauses(info(node)) if self.long and node.op != "placeholder" else []
        return " ".join(words)

    def _call(self, node: fx.Node) -> str:
        if node.op == "placeholder":
            return leaf_text(self.leaves[node.name])
        return made_text(node)

    def _type(self, node: fx.Node) -> str:
        """The printed type of a value, as far as its layout is known."""
        known = info(node)
        leaf = self.leaves.get(node.name) if node.op == "placeholder" else None
        if leaf is not None:
            return f" : {printed_type(leaf.dtype, _at_rest(leaf))}"
        sent = started_by(node) if is_wait(node) else node
        if is_start(node):
            return ""
        if sent.op == "call_function" and is_collective(sent):
            types = [printed_type(info(sent).dtype, one.dst) for _, one in collectives_of(sent)]
            return f" : ({', '.join(types)})" if is_bucket(sent) else f" : {types[0]}"
        if isinstance(known.layout, Layout) and isinstance(known.value, torch.Tensor):
            return f" : {printed_type(known.value.dtype, known.layout)}"
        return ""


def _at_rest(leaf: Leaf) -> Layout:
    return leaf.gathered or leaf.at_rest


def made_text(node: fx.Node) -> str:
    """What a node calls, or for what it waits."""
    if is_wait(node):
        return f"wait({started_by(node)})"
    return sent_text(node) if is_collective(node) else call_text(node)


def sent_text(node: fx.Node) -> str:
    """`all_gather[dp](x)`, `start all_reduce[dp]([x, y]) in gradients`."""
    pairs, by = collectives_of(node), routed_by(node)
    first = pairs[0][1]
    name = first.kind.value + (f"_{first.reduce}" if first.reduce is not ReduceOp.SUM else "")
    over = f"[{product(first.axes)}]" if first.axes else ""
    args = [shown([x for x, _ in pairs] if is_bucket(node) else pairs[0][0])]
    args += [shown(by)] if by is not None else []
    args += [route_text(first.route)] if first.route is not None else []
    args += [str(first.reads)] if first.reads is not None else []
    call = f"{name}{over}({', '.join(args)})"
    return f"start {call} in {stream_of(node)}" if is_start(node) else call


def _options(options: StepOptions) -> Iterator[str]:
    """What the passes are asked for."""
    if options.prefetch is not None:
        yield f"prefetch {options.prefetch}"
    if options.precision.reduce is not None:
        yield f"reduce {dtype_name(options.precision.reduce)}"
    if options.recompute.modules:
        yield f"recompute modules {', '.join(map(quoted, options.recompute.modules))}"
    if options.recompute.values:
        yield f"recompute values {', '.join(options.recompute.values)}"
