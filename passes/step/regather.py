"""regather: gather stored parameters again for the backward, instead of keeping them (ZeRO-3).

A backward op that reads a parameter made whole, or a view of one, reads another copy of the gather,
which stands in front of the first such op (Rajbhandari et al., 2020). The parameters of one bucket
are gathered again in one call, those alone that the backward reads.
"""

from __future__ import annotations

from torch import fx

from shardlang.ir.graph import is_item
from shardlang.ir.node import info
from shardlang.ir.step import StepProgram, apply_collective, cast, is_collective
from shardlang.ir.step_options import StepOptions
from shardlang.ir.views import gives_view
from shardlang.passes.step.again import make_again


def regather(program: StepProgram, options: StepOptions) -> StepProgram:
    """Read no gathered parameter of the forward in the backward."""
    if found := gathered_again(program.graph):
        make_again(program, found)
    return program


def gathered_again(graph: fx.Graph) -> set[fx.Node]:
    """The parameters that are not to be kept as they are gathered, and views of them."""
    found: set[fx.Node] = set()
    for node in graph.nodes:
        if node.op != "call_function" or info(node).backward:
            continue
        if _is_gathered(node):
            found |= {node, *node.all_input_nodes} if is_item(node) else {node}
        elif gives_view(node.target) and node.args and node.args[0] in found:
            found.add(node)
    return found | _casts(found)


def _casts(gathered: set[fx.Node]) -> set[fx.Node]:
    """What is cast to be gathered, and need not be kept for it."""
    sent = [node for node in gathered if is_collective(node)]
    return {x for node in sent for x in node.all_input_nodes if x.target is cast}


def _is_gathered(node: fx.Node) -> bool:
    """Whether a node is a parameter that is not to be kept."""
    return info(node).regather and (node.target is apply_collective or is_item(node))
