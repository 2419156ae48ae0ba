"""The forward and the backward of one op, as ops of their own.

An op is run on fake shards under autograd while every aten op below it is written down: first those
of its results, then those of the gradients of its operands. Equal calls are traced once, so the
repeated blocks of a model cost no more than one.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from shardlang.ir.compat import NO_FAKE_RESULT, FakeTensorMode, tree_map_only
from shardlang.passes.step.op_call import NotTraced, OpCall, Slot
from shardlang.passes.step.op_tape import OpTape
from shardlang.passes.step.traced import Traced, written_out
from shardlang.passes.step.without_writes import without_writes


def trace(call: OpCall) -> Traced:
    """The ops of a call, forward and backward, on fake shards.

    What surrounds it is written down too: the modes and hooks of the thread (`by_itself`).

    Raises:
        NotTraced: data, a draw or the kind of device decides what the op does, or it reads a
            tensor that it keeps.
    """
    try:
        with FakeTensorMode(allow_non_fake_inputs=True):
            tape, several = _run(call)
            return written_out(without_writes(tape).graph, call, several)
    except NO_FAKE_RESULT as error:
        raise NotTraced from error


def _run(call: OpCall) -> tuple[OpTape, bool]:
    """The tape of a call and its gradients, and whether it gives several results."""
    tape, xs = OpTape(), [torch.empty(s.shape, dtype=s.dtype) for s in call.shards]
    tape.give(*xs)
    for i in call.wanted:
        xs[i].requires_grad_()
    args, kwargs = tree_map_only(Slot, lambda slot: xs[slot.index], (call.args, call.kwargs))
    with tape, torch.enable_grad():
        made = call.target(*args, **kwargs)
    results = [made] if isinstance(made, Tensor) else made
    assert isinstance(results, (list, tuple))
    tensors = [r for r in results if isinstance(r, Tensor)]
    ends = [tensors[i] for i in call.given]
    cotangents = [torch.empty_like(end, requires_grad=False) for end in ends]
    tape.give(*cotangents)
    with tape:
        gradients = _gradients(ends, cotangents, [xs[i] for i in call.wanted])
    tape.finish([*results, *gradients])
    return tape, results is made


def _gradients(
    ends: Sequence[Tensor], cotangents: Sequence[Tensor], leaves: Sequence[Tensor]
) -> Sequence[Tensor | None]:
    pairs = [(e, c) for e, c in zip(ends, cotangents, strict=True) if e.requires_grad]
    if not pairs or not leaves:
        return [None] * len(leaves)
    reached, given = zip(*pairs, strict=True)
    return torch.autograd.grad(reached, leaves, given, allow_unused=True)
