"""From the program that every device shares to the code that this one runs.

Every device-dependent argument becomes a number, every reshard a function that holds its group and
sizes, every `device=` the device of the run. What remains is a flat fx graph module; its generated
code frees each value after its last use.
"""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import fx
from torch.fx.node import Argument, map_aggregate

from shardlang.ir.device_values import LocalShardAt, specialise
from shardlang.ir.experts.route import RouteAt
from shardlang.ir.graph import is_held, is_reshard, regathered, reshards_of
from shardlang.ir.node import info
from shardlang.ir.program import LocalProgram
from shardlang.ir.reshard import Reshard
from shardlang.runtime.collectives import RunReshard, RunReshards, RunRoute
from shardlang.runtime.groups import Groups
from shardlang.runtime.regather import Regather, WatchedReshard, WatchedReshards, parameter_of

ReshardT = TypeVar("ReshardT", RunReshard, RunReshards, WatchedReshard, WatchedReshards, RunRoute)


def load_program(
    program: LocalProgram, groups: Groups, regather: Regather | None = None
) -> fx.GraphModule:
    """The module that runs the program on this device.

    `regather` takes note of the parameters that are to be gathered again for the backward.

    It takes one tensor per leaf, in the order of `program.leaves`, and returns a tuple with one
    tensor per result. Collective: call it on every rank.
    """
    graph = fx.Graph()
    held: dict[str, object] = {}
    env: dict[fx.Node, fx.Node] = {}
    names = {leaf.node: leaf.name for leaf in program.leaves}
    for node in program.graph.nodes:
        if is_reshard(node):
            env[node] = _reshard_call(graph, node, env, groups, regather, names)
        elif node.op == "output":
            found = [env[result] for result in node.args[0] if result is not None]
            env[node] = graph.output(tuple(found))
        else:
            env[node] = _copied(graph, node, env, groups, held)
        env[node].name = node.name
    return fx.GraphModule(held, graph, "ShardedProgram")


def _reshard_call(
    graph: fx.Graph,
    node: fx.Node,
    env: dict[fx.Node, fx.Node],
    groups: Groups,
    regather: Regather | None,
    names: dict[str, str],
) -> fx.Node:
    """A call of the prebuilt reshard in place of the reshard node."""
    sources, reshards, *by = node.args
    where = info(node).module
    if by:
        assert isinstance(reshards, Reshard)
        route = _named(RunRoute(reshards, groups, where), node.name)
        return graph.call_function(route, fx.map_arg((sources, *by), lambda n: env[n]))
    args = (fx.map_arg(sources, lambda n: env[n]),)
    again = {place: parameter_of(item, names) for place, item in regathered(node).items()}
    if not isinstance(reshards, Reshard):
        every = [reshard for _, reshard in reshards_of(node)]
        each = RunReshards(every, groups, where, is_held(node))
        if regather is not None and again:
            watched_all = regather.watch_all(each, again)
            return graph.call_function(_named(watched_all, node.name), args)
        return graph.call_function(_named(each, node.name), args)
    made = RunReshard(reshards, groups, where, is_held(node))
    if regather is not None and again:
        return graph.call_function(_named(regather.watch(made, again[0]), node.name), args)
    return graph.call_function(_named(made, node.name), args)


def _named(call: ReshardT, name: str) -> ReshardT:
    """Give a callable the names by which generated code refers to it."""
    call.__name__ = call.__qualname__ = name
    call.__module__ = "shardlang.runtime"
    return call


def _copied(
    graph: fx.Graph,
    node: fx.Node,
    env: dict[fx.Node, fx.Node],
    groups: Groups,
    held: dict[str, object],
) -> fx.Node:
    """The node with this device's arguments."""
    args, kwargs = specialise((node.args, node.kwargs), groups.coord)

    def resolved(value: Argument) -> Argument:
        if isinstance(value, fx.Node):
            return env[value]
        if isinstance(value, torch.device):
            return groups.device
        return _hold(value, graph, held) if isinstance(value, (LocalShardAt, RouteAt)) else value

    made_args, made_kwargs = map_aggregate(args, resolved), map_aggregate(kwargs, resolved)
    return graph.create_node(node.op, node.target, made_args, made_kwargs)


def _hold(value: object, graph: fx.Graph, held: dict[str, object]) -> fx.Node:
    """A reference to an object that has no literal form: the module holds it."""
    name = f"held_{len(held)}"
    held[name] = value
    return graph.create_node("get_attr", name)
