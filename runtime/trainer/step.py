"""One step: forward, backward and update."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor

from shardlang.runtime.data import Batch
from shardlang.runtime.errors import RunError
from shardlang.runtime.trainer.records import Done
from shardlang.runtime.trainer.trainees import Trainee, Updates


def one_step(trainee: Trainee, batch: Batch, optimizer: Updates) -> Done:
    """Forward, backward and update. There is no update by numbers that are not finite.

    Raises:
        RunError: SH0631, the loss needs no gradient.
    """
    loss = trainee.backward(batch, optimizer.next_scale())
    if loss is None:
        return Done()
    optimizer.load()
    norm = optimizer.norm()
    found = loss.item(), norm.item()
    skipped = math.isfinite(found[0]) and not math.isfinite(found[1]) and optimizer.is_mended
    if skipped or all(map(math.isfinite, found)):
        optimizer.step()
    optimizer.zero_grad()
    return Done(*found, skipped)


def as_batch(batch: object) -> Batch:
    """The batch.

    Raises:
        RunError: SH0605, it is no dict.
    """
    if isinstance(batch, Mapping):
        return batch
    raise RunError(
        "SH0605",
        "a batch is a dict from input names to tensors, and this one is a"
        f" `{type(batch).__name__}`",
        help='let the model file yield dicts, such as `{"x": x, "y": y}`',
    )


def count_tokens(batch: Batch) -> int:
    """Tokens of a whole batch, or its rows where it has no integer matrix."""
    tensors = [value for value in batch.values() if isinstance(value, Tensor)]
    for value in tensors:
        if not value.is_floating_point() and value.dim() >= 2:
            return value.shape[0] * value.shape[1]
    return next((value.shape[0] for value in tensors if value.dim()), 1)
