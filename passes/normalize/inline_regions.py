"""Inline the grad-mode and autocast regions that export wraps into submodules."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, TypeVar

import torch
from torch import fx
from torch.fx.node import Argument

from shardlang.ir.compat import HigherOrderOperator
from shardlang.ir.graph import ShardGraph
from shardlang.ir.node import info, set_info
from shardlang.ir.rewriter import Rewriter
from shardlang.passes.errors import PassError
from shardlang.passes.invariants.invariant import Invariant
from shardlang.passes.invariants.traced import regions_inlined
from shardlang.passes.normalize.fx_edit import may_have_gradient

_GRAD_REGION = torch.ops.higher_order.wrap_with_set_grad_enabled
_AUTOCAST_REGION = torch.ops.higher_order.wrap_with_autocast


ArgumentT = TypeVar("ArgumentT", bound=Argument)


@dataclass(frozen=True, slots=True)
class InlineRegions:
    """Inline the grad-mode and autocast regions that export wraps into submodules."""

    name: str = "inline_regions"
    establishes: ClassVar[tuple[Invariant, ...]] = (regions_inlined,)
    retires: ClassVar[tuple[Invariant, ...]] = ()

    def run(self, graph: ShardGraph) -> ShardGraph:
        """A flat copy of the graph.

        Raises:
            PassError: an autocast region that casts, or a branch or a loop.
        """
        traced = graph.graph.owning_module
        graph.graph = inline_regions(traced or fx.GraphModule({}, graph.graph))
        return graph


def inline_regions(traced: fx.GraphModule) -> fx.Graph:
    """A flat copy of a traced graph.

    What was computed without gradients and is used with them passes through `aten.detach`, so the
    copy needs no grad mode. Raises `PassError` for an autocast region that casts.
    """
    graph = fx.Graph()
    outputs = _copy(traced, graph, {}, no_grad=False)
    graph.output(outputs)
    _detach_at_borders(graph)
    return graph


def _copy(
    module: fx.GraphModule, graph: fx.Graph, env: dict[fx.Node, Argument], *, no_grad: bool
) -> Argument:
    """Copy a module's nodes into `graph` and return what its output node returns."""

    def mapped(args: ArgumentT) -> ArgumentT:
        return fx.map_arg(args, lambda n: env[n])

    for node in module.graph.nodes:
        if node.op == "output":
            outputs: Argument = mapped(node.args[0])
            return outputs
        if node in env or node.op == "get_attr":
            continue
        if node.op == "call_function" and _is_region(node):
            env[node] = _inline(module, graph, node, mapped, no_grad)
        elif (results := _results_of_region(node, env)) is not None:
            env[node] = results[node.args[1]]
        else:
            env[node] = made = graph.node_copy(node, lambda n: env[n])
            set_info(made, replace(info(node), no_grad=no_grad))
    raise AssertionError("a graph ends in an output node")


def _results_of_region(node: fx.Node, env: Mapping[fx.Node, Argument]) -> Sequence[Argument] | None:
    """The results of a region, where the node picks one of them."""
    source = node.args[0] if node.target is operator.getitem else None
    found = env[source] if isinstance(source, fx.Node) else None
    return found if isinstance(found, (tuple, list)) else None


def _is_region(node: fx.Node) -> bool:
    """Whether the node wraps a submodule, of whatever kind."""
    return isinstance(node.target, HigherOrderOperator)


def _inline(
    module: fx.GraphModule,
    graph: fx.Graph,
    node: fx.Node,
    mapped: Callable[[Sequence[Argument]], Sequence[Argument]],
    no_grad: bool,
) -> Argument:
    """Copy the body of a region node."""
    if node.target is _GRAD_REGION:
        enabled, body, *operands = node.args
        no_grad = not enabled
    elif node.target is _AUTOCAST_REGION and not node.args[2]:
        _device, _dtype, _enabled, _cache, body, *operands = node.args
    else:
        raise _unsupported(module, node)
    assert isinstance(body, fx.Node)
    submodule = getattr(module, str(body.target))
    inputs = [n for n in submodule.graph.nodes if n.op == "placeholder"]
    env = dict(zip(inputs, mapped(operands), strict=True))
    return _copy(submodule, graph, env, no_grad=no_grad)


def _unsupported(module: fx.GraphModule, node: fx.Node) -> PassError:
    """The error for a region that cannot be inlined."""
    bodies = [getattr(module, str(n.target)) for n in node.all_input_nodes if n.op == "get_attr"]
    sources = [info(n).source for b in bodies for n in b.graph.nodes]
    source = next(filter(None, sources), info(node).source)
    if node.target is _AUTOCAST_REGION:
        return PassError(
            "SH0358",
            "the model switches autocast on in its own code",
            source=source,
            help="leave precision to the caller: build the model in the wanted dtype",
        )
    return PassError(
        "SH0358",
        f"the model uses `{node.target}`, whose branches and loops cannot be sharded",
        source=source,
        help="compute all branches and choose with `torch.where`, or write the loop out",
    )


def _detach_at_borders(graph: fx.Graph) -> None:
    """Put a detach between floating no-grad nodes and their users outside."""
    edit = Rewriter(graph)
    for node in list(graph.nodes):
        if not info(node).no_grad or not may_have_gradient(node):
            continue
        users = [u for u in node.users if not info(u).no_grad]
        if not users or not isinstance(info(node).value, torch.Tensor):
            continue
        detached = edit.call(torch.ops.aten.detach.default, node, like=node)
        node.append(detached)
        set_info(detached, replace(info(detached), no_grad=False))
        for user in users:
            user.replace_input_with(node, detached)
