"""The bytes that are alive in a real step of a loaded program."""

from __future__ import annotations

import gc
import time
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from shardlang.api import Program
from shardlang.capture import InputSpec
from shardlang.cost.meter import Meter
from shardlang.ir.compat import OpOverload
from shardlang.runtime.module import ShardedModule, held


class CalmMeter(Meter):
    """A meter that lets the threads of gloo let go of the tensors of a call that is done."""

    def __init__(self) -> None:
        super().__init__()
        self._sent = False

    def __torch_dispatch__(
        self,
        func: OpOverload,
        types: object,
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        if self._sent:
            time.sleep(0.002)
        self._sent = func.namespace == "c10d"
        return super().__torch_dispatch__(func, types, args, kwargs)


def measured_peak(program: Program, steps: int = 1) -> int:
    """The most bytes that are alive in the forward and backward of a loop on this device.

    The first step, in which the backward is loaded and ranks compare more, is not measured; of
    several, the least is taken, since threads of gloo may hold tensors for a moment longer.
    """
    module = program.load()
    given = module.shard_inputs(**_batch(program.compiled.inputs))
    _step(program, module, given)
    return min(_peak_of_one(program, module, given) for _ in range(steps))


def _peak_of_one(program: Program, module: ShardedModule, given: Mapping[str, object]) -> int:
    module.zero_grad(set_to_none=True)
    gc.collect()
    loaded, shards = held(module).variants.choose((), given)
    with CalmMeter() as meter:
        meter.count(loaded._leaves(shards))
        _step(program, module, given)
    return meter.peak


def _step(program: Program, module: ShardedModule, given: Mapping[str, object]) -> None:
    made = module(**given)
    loss = made if isinstance(made, Tensor) else made[program.local.loss]
    loss.backward()


def _batch(inputs: Sequence[InputSpec]) -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {one.name: _values(one) for one in inputs}


def _values(one: InputSpec) -> Tensor:
    if one.dtype.is_floating_point:
        return torch.randn(one.shape, dtype=one.dtype)
    return torch.randint(0, one.below or 2, one.shape, dtype=one.dtype)
