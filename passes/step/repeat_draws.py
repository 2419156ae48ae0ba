"""repeat_draws: every stage of a pipeline draws all that the forward draws, in the same order.

One device takes all numbers from one generator, one draw after the other. A stage that made its own
draws alone would take the numbers of the first ones, and after a step the devices would go on from
different states. So each stage makes the draws of all others too. It needs the shape of what they
are drawn for, not the values, and drops what it has drawn. A draw that reads nothing, such as the
key of the streams of `random fast`, is read in every stage from its own copy: nothing is sent.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import fx

from shardlang.ir.compat import OpOverload, tree_leaves
from shardlang.ir.device_values import size_at
from shardlang.ir.graph import ShardError, is_item
from shardlang.ir.node import NodeInfo, info, layout_of, tensor_of
from shardlang.ir.rewriter import Rewriter, copy_graph
from shardlang.ir.step import StepProgram
from shardlang.rules.dropout import PARTS
from shardlang.rules.streams import stream_key

aten = torch.ops.aten

_MADE_OF_DRAWS = {parts.thin for parts in PARTS.values()}
"""The second step of a dropout, which has the record of the dropout and draws nothing."""

_BY_VALUES = {
    packet.default
    for packet in (
        aten.rrelu, aten.rrelu_with_noise_functional, aten.poisson, aten.binomial,
        aten._standard_gamma, aten._sample_dirichlet,
    )
}  # fmt: skip
"""The ops that take more or fewer numbers, depending on the values that they are given."""


def repeat_draws(step: StepProgram, stages: int) -> StepProgram:
    """The same step, every stage of which makes all draws.

    Raises:
        ShardError: SH0410, how many numbers a draw takes depends on values.
    """
    drawing = [node.name for node in step.graph.nodes if _draws(node)]
    if not drawing:
        return step
    graph, _ = copy_graph(step.graph)
    named = {node.name: node for node in graph.nodes}
    for name in drawing:
        _check(named[name])
        for stage in range(stages):
            if stage != info(named[name]).stage:
                _repeat(graph, named[name], stage)
    graph.lint()
    return replace(step, graph=graph)


def _draws(node: fx.Node) -> bool:
    """Whether a node takes numbers from the generator of the device."""
    if node.op != "call_function" or not info(node).random or is_item(node):
        return False
    apart = any(x.target is stream_key for x in node.all_input_nodes)
    return not apart and node.target not in _MADE_OF_DRAWS


def _check(node: fx.Node) -> None:
    called = (node.target, *tree_leaves(node.args))
    if not any(isinstance(one, OpOverload) and one in _BY_VALUES for one in called):
        return
    raise ShardError(
        "SH0410",
        f"how many random numbers `{node.name}` takes depends on its values, which other stages"
        " do not have",
        node=node,
        help="leave `pipeline` out, or draw in the model as many numbers whatever the values are",
    )


def _repeat(graph: fx.Graph, node: fx.Node, stage: int) -> None:
    """Make a draw in another stage; readers there take it if it draws the same."""
    edit, operands = Rewriter(graph), node.all_input_nodes
    stands = {x: _stand_in(edit, x, node, stage) for x in operands}
    args, kwargs = fx.map_arg((node.args, node.kwargs), stands.__getitem__)
    record = replace(info(node), stage=stage)
    copy = edit.add(node.target, args, kwargs, record=record, before=node.next)
    if operands:
        return
    for user in [one for one in node.users if info(one).stage == stage]:
        user.replace_input_with(node, copy)


def _stand_in(edit: Rewriter, x: fx.Node, node: fx.Node, stage: int) -> fx.Node:
    """A tensor of ones that has on every device the shape of its shard of `x`.

    Ones are what any op takes: probabilities, weights, rates and deviations.
    """
    value, layout = tensor_of(x), layout_of(x)
    sizes = [size_at(dim) for dim in layout.dims]
    made = NodeInfo(value, info(node).module, info(node).source, layout=layout, stage=stage)
    options = {"dtype": value.dtype, "device": torch.device("cpu")}
    return edit.add(aten.ones.default, (sizes,), options, record=made, before=node)
