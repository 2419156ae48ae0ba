"""Raising a traced program to float64, internal casts included."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from shardlang.passes.fx_edit import Editor

_RAISED = {
    torch.float16: torch.float64,
    torch.bfloat16: torch.float64,
    torch.float32: torch.float64,
    torch.complex32: torch.complex128,
    torch.complex64: torch.complex128,
}


def raised_dtype(dtype: torch.dtype) -> torch.dtype:
    """float64 for a real floating type, complex128 for a complex one, others unchanged."""
    return _RAISED.get(dtype, dtype)


def raise_to_float64(graph: fx.Graph) -> fx.Graph:
    """A copy of `graph` whose every floating value is float64.

    Dtype arguments of casts, factories and reductions are raised alike, so nothing is rounded to a
    lower precision on the way. Node names stay.
    """
    raised = fx.Graph()
    env: dict[fx.Node, fx.Node] = {}
    raised.graph_copy(graph, env, return_output_node=False)
    outputs = fx.map_arg(graph.output_node().args[0], lambda n: env[n])
    raised.output(outputs)
    edit = Editor(graph)
    for old in graph.nodes:
        node = env.get(old)
        if node is None:
            continue
        node.meta = dict(old.meta)
        if node.op == "placeholder":
            node.meta["val"] = _raised(old.meta["val"], edit)
        elif node.op == "call_function":
            node.args = _raise_arguments(node.args)
            node.kwargs = _raise_arguments(node.kwargs)
            edit.infer(node)
    raised.lint()
    return raised


def _raised(fake: torch.Tensor, edit: Editor) -> torch.Tensor:
    """A fake tensor of the raised type."""
    with edit.fake_mode:
        return torch.empty_strided(fake.size(), fake.stride(), dtype=raised_dtype(fake.dtype))


def _raise_arguments(arguments: Any) -> Any:
    """Arguments with floating dtypes raised."""
    if isinstance(arguments, torch.dtype):
        return raised_dtype(arguments)
    if isinstance(arguments, (tuple, list)):
        return type(arguments)(_raise_arguments(a) for a in arguments)
    if isinstance(arguments, dict):
        return {key: _raise_arguments(value) for key, value in arguments.items()}
    return arguments
