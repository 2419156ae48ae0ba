"""What is done around each step of an optimizer on sharded parameters.

`Optimizer.load_state_dict` takes what it is given: states of the plain model's optimizer, or of
`set_optimizer_state_dict(..., full_state_dict=True)`, are whole tensors. The next step finds them,
and keeps this device's shards. The step itself is counted, so that the next call compares it.
"""

from __future__ import annotations

import weakref

import torch
from torch import Tensor
from torch.optim.optimizer import (
    Optimizer,
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from shardlang.runtime.changes import after_step, before_step
from shardlang.runtime.tensor import Sharded, sharded
from shardlang.runtime.tensor_shards import shard

_SEEN: weakref.WeakKeyDictionary[Optimizer, object] = weakref.WeakKeyDictionary()
"""The state of each optimizer that has been looked through; loading makes a new one."""


@torch.no_grad()
def cut_states(optimizer: Optimizer) -> None:
    """Cut the whole states of sharded parameters, once after each load.

    A step by states that were loaded counts as a change by hand: they may differ between ranks.
    """
    if _SEEN.get(optimizer) is optimizer.state:
        return
    _SEEN[optimizer] = optimizer.state
    for param, states in optimizer.state.items():
        if isinstance(param, Sharded):
            param.excused -= 1
            for name, value in states.items():
                if isinstance(value, Tensor) and not isinstance(value, Sharded):
                    states[name] = _cut(value, param)


def _cut(value: Tensor, param: Sharded) -> Tensor:
    if value.shape != param.shape or not value.dim():
        return value
    lies = param.gradient or param.sharding
    return sharded(shard(value, lies).clone(), lies)


def install() -> None:
    """Look at every optimizer before and after its steps, from now on."""
    if not _INSTALLED:
        _INSTALLED.append(register_optimizer_step_pre_hook(_before))
        _INSTALLED.append(register_optimizer_step_post_hook(_after))


def _before(optimizer: Optimizer, *_: object) -> None:
    cut_states(optimizer)
    before_step(optimizer)


def _after(optimizer: Optimizer, *_: object) -> None:
    after_step(optimizer)


_INSTALLED: list[object] = []
