"""The forward and the backward of one op, as ops of their own.

An op is run on fake shards under autograd while every aten op below it is written down: first those
of its results, then those of the gradients of its operands. Equal calls are traced once, so the
repeated blocks of a model cost no more than one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx
from torch.func import functionalize
from torch.fx.experimental.proxy_tensor import make_fx

from shardlang.ir.compat import NO_FAKE_RESULT, FakeTensorMode, OpOverload
from shardlang.passes.step.op_call import NotTraced, OpCall, Slot
from shardlang.passes.step.traced import Traced, written_out

T = TypeVar("T")


def trace(call: OpCall) -> Traced:
    """The ops of a call, forward and backward, on fake shards.

    Raises:
        NotTraced: data, a draw or the kind of device decides what the op does, or it reads a
            tensor that it keeps.
    """
    try:
        return _by_itself(lambda: _trace(call))
    except NO_FAKE_RESULT as error:
        raise NotTraced from error


def _by_itself(work: Callable[[], T]) -> T:
    """Do some work in a thread of its own: without the caller's modes, hooks and defaults.

    Hooks on what autograd saves, `inference_mode`, a default device and every mode of torch belong
    to a thread, and would be written down with the ops.
    """
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(work).result()


def _trace(call: OpCall) -> Traced:
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    several: list[bool] = []

    def run(xs: list[Tensor], cotangents: list[Tensor]) -> tuple[Tensor | None, ...]:
        leaves = [
            x.detach().requires_grad_() if i in call.wanted else x.detach()
            for i, x in enumerate(xs)
        ]
        args, kwargs = pytree.tree_map_only(
            Slot, lambda slot: leaves[slot.index], (call.args, call.kwargs)
        )
        with torch.enable_grad():
            made = call.target(*args, **kwargs)
        several.append(not isinstance(made, Tensor))
        results = _listed(made)
        tensors = [r for r in results if isinstance(r, Tensor)]
        ends = [
            (tensors[i], c)
            for i, c in zip(call.given, cotangents, strict=True)
            if tensors[i].requires_grad
        ]
        found: Sequence[Tensor | None] = [None] * len(call.wanted)
        if ends and call.wanted:
            found = torch.autograd.grad(
                [end for end, _ in ends],
                [leaves[i] for i in call.wanted],
                [c for _, c in ends],
                allow_unused=True,
            )
        return (*(r if isinstance(r, Tensor) else None for r in results), *found)

    with mode:
        xs = [torch.empty(s.shape, dtype=s.dtype) for s in call.shards]
        made = _results(call, xs)
        cotangents = [torch.empty_like(made[i]) for i in call.given]
        module = _without_writes(make_fx(run)(xs, cotangents), xs, cotangents)
    return written_out(module, call, several[-1])


def _without_writes(
    module: fx.GraphModule, xs: list[Tensor], cotangents: list[Tensor]
) -> fx.GraphModule:
    """The same ops, without writes of which other ops would have to know.

    So every op depends on what its operands say, and may stand wherever they are there.
    """
    if all(_is_known(node) for node in module.graph.nodes if _writes(node)):
        return module
    return make_fx(functionalize(module))(xs, cotangents)


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


def _results(call: OpCall, xs: Sequence[Tensor]) -> list[Tensor]:
    """The fake tensors that a call gives."""
    args, kwargs = pytree.tree_map_only(Slot, lambda slot: xs[slot.index], (call.args, call.kwargs))
    with torch.no_grad():
        made = call.target(*args, **kwargs)
    return [one for one in _listed(made) if isinstance(one, Tensor)]


def _listed(made: object) -> Sequence[object]:
    """The results of a call, one or several."""
    if isinstance(made, Tensor):
        return [made]
    assert isinstance(made, (list, tuple))
    return made
