"""The bytes that are alive in a real step of a loaded program."""

from __future__ import annotations

import gc
import time
from collections.abc import Mapping, Sequence
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch import Tensor

from shardlang.api import Program
from shardlang.capture import InputSpec
from shardlang.cost.meter import Meter
from shardlang.ir.program import differentiable
from shardlang.ir.step import StepProgram
from shardlang.passes.step.write_step import write_step
from shardlang.runtime.module import ShardedModule, held
from shardlang.runtime.transport import Arriving


class Waited:
    """A call whose threads have let go of its tensors when it has been waited for."""

    def __init__(self, work: dist.Work) -> None:
        self._work: dist.Work | None = work

    def wait(self) -> None:
        """Wait for the call, and for its threads, which hold its tensors for a moment longer."""
        assert self._work is not None
        self._work.wait()
        self._work = None
        time.sleep(0.002)


def step_of(program: Program) -> StepProgram:
    """The step from the loss of a program, or from every output."""
    local, train = program.local, program.compiled.train
    trained = [leaf.name for leaf in local.leaves if leaf.trainable and train]
    return write_step(local, trained, [local.loss] if local.loss else differentiable(local))


def measured_peak(program: Program, steps: int = 1, compile: bool = False) -> int:
    """The most bytes that are alive in the forward and backward of a loop on this device.

    The first step, in which the backward is loaded and ranks compare more, is not measured; of
    several, the least is taken, since threads of gloo may hold tensors longer than we wait.
    """
    gc.freeze()  # collections look at no older object, which costs a second in a long suite
    module = program.load(compile=compile)
    given = module.shard_inputs(**_batch(program.compiled.inputs))
    _step(program, module, given)
    return min(_peak_of_one(program, module, given) for _ in range(steps))


def _peak_of_one(program: Program, module: ShardedModule, given: Mapping[str, object]) -> int:
    module.zero_grad(set_to_none=True)
    gc.collect()
    loaded, shards = held(module).variants.choose((), given)
    with Meter() as meter, patch.object(Arriving, "__init__", arriving):
        meter.count(loaded.leaves(shards))
        _step(program, module, given)
    return meter.peak


_INIT = Arriving.__init__


def arriving(self: Arriving, out: Tensor, work: Any = None, message: Tensor | None = None) -> None:
    """Stands for the initialiser of what arrives: the wait for it also waits for its threads."""
    _INIT(self, out, None if work is None else Waited(work), message)  # type: ignore[arg-type]


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
