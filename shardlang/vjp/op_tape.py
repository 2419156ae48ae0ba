"""A tape of the aten ops that run, as nodes of a graph."""

from __future__ import annotations

import operator
from collections.abc import Sequence

import torch
from torch import Tensor, fx
from torch.fx.node import Argument

from shardlang.ir.compat import (
    OpOverload,
    TorchDispatchMode,
    map_leaves,
    unset_fake_temporarily,
)
from shardlang.vjp.op_call import NotTraced

_MADE_OF_NUMBERS = (torch.ops.aten.lift_fresh.default, torch.ops.aten.lift_fresh_copy.default)
"""What `torch.tensor` calls with the tensor that it has made."""


class OpTape(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Writes down every op that runs under it, below autograd.

    A tensor is known by its identity; so each that was met is held as long as the tape is.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.graph = fx.Graph()
        self.inputs: list[Tensor] = []
        self._nodes: dict[int, fx.Node] = {}
        self._held: list[Tensor] = []

    def give(self, *inputs: Tensor) -> None:
        """Let placeholders stand for tensors that no op has made."""
        for one in inputs:
            self._is(one, self.graph.placeholder(f"input_{len(self.inputs)}"))
            self.inputs.append(one)

    def finish(self, returned: Sequence[object]) -> None:
        """Say what is returned: tensors, and anything else for a None."""
        nodes = [self._node_of(one) if isinstance(one, Tensor) else None for one in returned]
        self.graph.output(tuple(nodes))

    def __torch_dispatch__(
        self,
        func: OpOverload,
        types: object,
        args: tuple[Argument, ...] = (),
        kwargs: dict[str, Argument] | None = None,
    ) -> object:
        made: object = func(*args, **(kwargs or {}))
        if func in _MADE_OF_NUMBERS:
            node = self._numbers(args[0])
        else:
            node = self.graph.call_function(func, *self._as_nodes(args, kwargs or {}))
        self._note(made, node)
        return made

    def _as_nodes(
        self, args: tuple[Argument, ...], kwargs: dict[str, Argument]
    ) -> tuple[tuple[Argument, ...], dict[str, Argument]]:
        return map_leaves(
            (args, kwargs), lambda one: self._node_of(one) if isinstance(one, Tensor) else one
        )

    def _node_of(self, tensor: Tensor) -> fx.Node:
        """The node whose value a tensor is.

        Raises:
            NotTraced: no op on the tape has made it.
        """
        if id(tensor) not in self._nodes:
            raise NotTraced
        return self._nodes[id(tensor)]

    def _is(self, tensor: Tensor, node: fx.Node) -> None:
        self._nodes[id(tensor)] = node
        self._held.append(tensor)

    def _note(self, made: object, node: fx.Node) -> None:
        if isinstance(made, Tensor):
            self._is(made, node)
        elif isinstance(made, (list, tuple)):
            for place, one in enumerate(made):
                if isinstance(one, (Tensor, list, tuple)):
                    self._note(one, self.graph.call_function(operator.getitem, (node, place)))

    def _numbers(self, value: object) -> fx.Node:
        """A node for a list of whole numbers that an op makes a tensor of.

        Raises:
            NotTraced: it is any other tensor.
        """
        assert isinstance(value, Tensor)
        if value.dim() != 1 or value.dtype is not torch.int64:
            raise NotTraced
        with unset_fake_temporarily():
            numbers = value.tolist()
        named: dict[str, Argument] = {"dtype": value.dtype, "device": value.device}
        return self.graph.call_function(torch.tensor, (numbers,), named)


def returned_by(graph: fx.Graph) -> list[fx.Node | None]:
    """The nodes that the graph of a tape returns; None where a result or gradient is none."""
    flat = graph.output_node().args[0]
    assert isinstance(flat, (list, tuple))
    return [one if isinstance(one, fx.Node) else None for one in flat]
