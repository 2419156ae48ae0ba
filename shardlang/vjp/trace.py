"""The forward and the backward of one op, as ops of their own.

An op is run on fake shards under autograd while every aten op below it is written down: first those
of its results, then those of the gradients of its operands. Equal calls are traced once, so the
repeated blocks of a model cost no more than one.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from shardlang.ir.compat import (
    NO_FAKE_RESULT,
    allowing,
    attention_kernels,
    tree_map_only,
)
from shardlang.ir.fakes import fake, fake_mode
from shardlang.ir.step import Operand
from shardlang.vjp.op_call import NotTraced, OpCall
from shardlang.vjp.op_tape import OpTape
from shardlang.vjp.traced import Traced, written_out
from shardlang.vjp.without_writes import without_writes


def trace(call: OpCall) -> Traced:
    """The ops of a call, forward and backward, on fake shards.

    What surrounds it is written down too: the modes and hooks of the thread (`by_itself`).

    Raises:
        NotTraced: data, a draw or the kind of device decides what the op does, or it reads a
            tensor that it keeps.
    """
    try:
        kernels = call.kernels or attention_kernels()
        with fake_mode(), allowing(kernels):
            tape, several = _run(call)
            return written_out(without_writes(tape).graph, call, several)
    except NO_FAKE_RESULT as error:
        raise NotTraced from error


_KEPT: dict[str, Traced | None] = {}
_MOST_KEPT = 4096


def ops_of(call: OpCall) -> Traced | None:
    """The ops of a call; None for one that fails on fake shards, as it may on real ones.

    Equal calls are traced once.
    """
    key = call.key()
    if key not in _KEPT:
        if len(_KEPT) == _MOST_KEPT:
            _KEPT.clear()
        try:
            _KEPT[key] = trace(call)
        except (NotTraced, RuntimeError, TypeError, ValueError, IndexError):
            _KEPT[key] = None
    return _KEPT[key]


def _run(call: OpCall) -> tuple[OpTape, bool]:
    """The tape of a call and its gradients, and whether it gives several results."""
    device = call.device or torch.device("cpu")
    xs = [fake(s.shape, s.dtype, device=device) for s in call.shards]
    tape = OpTape()
    tape.give(*xs)
    for i in call.wanted:
        xs[i].requires_grad_()
    args, kwargs = tree_map_only(Operand, lambda one: xs[one.index], (call.args, call.kwargs))
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
    # a thread of autograd's own, which there is for a GPU, would run without the tape
    with torch.autograd.set_multithreading_enabled(False):
        return torch.autograd.grad(reached, leaves, given, allow_unused=True)
