"""The ops on a tape without writes of which other ops would have to know."""

from __future__ import annotations

from torch import Tensor, fx
from torch.func import functionalize

from shardlang.ir.compat import OpOverload
from shardlang.vjp.op_tape import OpTape, returned_by


def without_writes(tape: OpTape) -> OpTape:
    """The same ops; every one depends on what its operands say alone, and may stand anywhere."""
    if all(_is_known(node) for node in tape.graph.nodes if _writes(node)):
        return tape
    again = OpTape()
    inputs = [x.detach() for x in tape.inputs]
    again.give(*inputs)
    with again:
        returned = functionalize(lambda *xs: _replayed(tape.graph, xs))(*inputs)
    again.finish(returned)
    return again


def _writes(node: fx.Node) -> bool:
    return isinstance(node.target, OpOverload) and node.target._schema.is_mutable


def _is_known(write: fx.Node) -> bool:
    """Whether nobody reads what an op writes to but by the op's result."""
    written = write.args[0]
    if not isinstance(written, fx.Node) or not isinstance(written.target, OpOverload):
        return False
    made = written.target._schema.returns
    is_view = any(r.alias_info is not None and not r.alias_info.is_write for r in made)
    return not is_view and list(written.users) == [write]


def _replayed(graph: fx.Graph, inputs: tuple[Tensor, ...]) -> tuple[object, ...]:
    """The values that a graph returns for some inputs."""
    env = dict(zip(graph.find_nodes(op="placeholder"), inputs, strict=True))
    for node in graph.nodes:
        if node.op == "call_function":
            args, kwargs = fx.map_arg((node.args, node.kwargs), env.__getitem__)
            env[node] = node.target(*args, **kwargs)
    return tuple(node and env[node] for node in returned_by(graph))
