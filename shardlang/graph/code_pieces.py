"""The functions of a step beside forward and backward, and the one that calls them all."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from torch import fx

from shardlang.compiler.driver import Compiled
from shardlang.compiler.whole_step import WholeStep
from shardlang.graph.code_function import INDENT, Function, commented
from shardlang.graph.code_names import CodeNames, short_name
from shardlang.ir.accumulated import Piece
from shardlang.ir.leaf import Leaf
from shardlang.ir.node import returned_nodes
from shardlang.ir.printed_type import dtype_name
from shardlang.ir.step import UpdateProgram
from shardlang.plan.calls import norm_of_gradients


def piece_lines(title: str, piece: Piece, sums: Mapping[str, str]) -> Iterator[str]:
    """What is done once for all microbatches, or for all before the first forward.

    Args:
        sums: variables of what is summed over microbatches, by name.
    """
    nodes = [node for node in piece.graph.nodes if node.op != "output"]
    given = [node for node in nodes if node.op == "placeholder"]
    takes = {
        node.name: sums.get(name) or short_name(name)
        for node, name in zip(given, piece.takes, strict=True)
    }
    yield from _function(
        title, nodes, takes, zip(piece.gives, returned_nodes(piece.graph), strict=True)
    )


def update_lines(update: UpdateProgram, leaves: Sequence[Leaf]) -> Iterator[str]:
    """The gathers of new values."""
    names = {leaf.node: short_name(leaf.name) for leaf in leaves}
    nodes = [node for node in update.graph.nodes if node.op != "output"]
    given = [node.name for node in nodes if node.op == "placeholder"]
    takes = {name: names.get(name) or f"{names[name.removesuffix('_part')]}_part" for name in given}
    yield from _function("update", nodes, takes, ())


def _function(
    title: str,
    nodes: Sequence[fx.Node],
    takes: Mapping[str, str],
    gives: Iterable[tuple[str, fx.Node]],
) -> Iterator[str]:
    """A function of a graph of its own."""
    names, ends = CodeNames(takes), list(gives)
    names.add(nodes)
    body = [node for node in nodes if node.op == "call_function"]
    function = Function(names, body, {node for _, node in ends})
    yield f"def {title}("
    for node in nodes:
        if node.op == "placeholder":
            yield commented(f"{INDENT}{names(node)},", function.type_of(node))
    yield "):"
    yield from function.lines()
    if ends:
        yield ""
        yield f"{INDENT}return ("
        yield from (commented(f"{INDENT * 2}{names(node)},", name) for name, node in ends)
        yield f"{INDENT})"


def order_lines(compiled: Compiled, step: WholeStep) -> Iterator[str]:
    """What a step runs one after the other."""
    several = step.accumulated
    if several is None:
        yield "def step(leaves, optimizer):"
        yield f"{INDENT}results, saved = forward(*leaves)"
        yield f"{INDENT}gradients = backward(*saved, {_seeds(compiled, step)})"
        yield from optimizer_lines(compiled, step.update is not None)
        yield f"{INDENT}return results"
        return
    yield commented("def step(microbatches, optimizer):", f"{several.axis.size} of them")
    totals = ""
    if several.early.gives:
        yield f"{INDENT}totals = summed(early(*leaves) for leaves in microbatches)"
        totals = ", *totals"
    yield f"{INDENT}sums, parts = zeros(), zeros()"
    yield f"{INDENT}for leaves in microbatches:"
    yield f"{INDENT * 2}results, saved = forward(*leaves{totals})"
    yield f"{INDENT * 2}sums.add(results)"
    wide = "" if several.wide is None else f"sums in {dtype_name(several.wide)}"
    yield commented(f"{INDENT * 2}parts.add(backward(*saved, {_seeds(compiled, step)}))", wide)
    yield f"{INDENT}results = finish(*sums)"
    yield f"{INDENT}gradients = reduce(*parts)"
    yield from optimizer_lines(compiled, step.update is not None)
    yield f"{INDENT}return results"


def _seeds(compiled: Compiled, step: WholeStep) -> str:
    """The gradients of what the backward starts from: one for a loss, or its factor."""
    ends = step.step.cotangents
    if compiled.program.step.precision.loss_scale is not None and len(ends) == 1:
        return "optimizer.loss_scale"
    return "1.0" if len(ends) == 1 else f"*[1.0] * {len(ends)}"


def optimizer_lines(compiled: Compiled, updates: bool) -> Iterator[str]:
    """From the gradients to the new values.

    Args:
        updates: whether parts of new values are gathered.
    """
    rule, precision = compiled.rule, compiled.program.step.precision
    if precision.loss_scale is not None:
        call = f"{INDENT}gradients = optimizer.unscaled(gradients)"
        yield commented(call, "divided by the factor of the loss")
    for row in norm_of_gradients(compiled.program, rule):
        axes = ", ".join(f'"{axis}"' for axis in row.axes)
        axes = f"({axes})" if len(row.axes) > 1 else axes
        call = f"{INDENT}norm = all_reduce(optimizer.squared_norm(gradients), {axes})"
        yield commented(call, "if it is not finite, nothing is updated")
        if rule.clip is not None:
            yield f"{INDENT}gradients = optimizer.clipped(gradients, norm)"
    parts = f"{rule.title}, on this device's parts"
    parts += f" in {dtype_name(precision.master)}" if precision.master is not None else ""
    yield commented(f"{INDENT}optimizer.step(gradients)", parts)
    if updates:
        yield f"{INDENT}update(*optimizer.values, *optimizer.parts)"
