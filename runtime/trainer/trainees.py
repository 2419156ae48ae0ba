"""What a training loop trains: the sharded model, or the plain one that it is compared with."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

from shardlang.ir.optimizers import UpdateRule
from shardlang.ir.precision import OWN_TYPES, Precision
from shardlang.runtime.data import Batch, Reader
from shardlang.runtime.data.rows import DeviceReader
from shardlang.runtime.errors import RunError
from shardlang.runtime.module import ShardedModule, held
from shardlang.runtime.optim import ShardedOptimizer


class Trainee(Protocol):
    """A model as the loop sees it; without a loss each step runs the forward alone."""

    module: nn.Module
    has_loss: bool

    def check(self, batch: Batch) -> None:
        """Refuse a whole batch on which no step can be taken, before the ranks begin one.

        Raises:
            RunError: SH0605.
        """
        ...

    def prepare(self, batch: Batch) -> Batch:
        """What this process needs of a whole batch."""
        ...

    def backward(self, batch: Batch, scale: float = 1.0) -> Tensor | None:
        """The loss of a prepared batch, whose gradients the parameters get; None without a loss.

        Args:
            scale: by what the gradients are multiplied.

        Raises:
            RunError: SH0631, the loss needs no gradient.
        """
        ...

    def loss(self, batch: Batch) -> Tensor | None:
        """The loss of a whole batch, of the forward alone; None without a loss."""
        ...

    def optimizer(self, rule: UpdateRule, precision: Precision = OWN_TYPES) -> Updates:
        """The optimizer, for what is trained, with the types that are stated."""
        ...


class Updates(Protocol):
    """An optimizer as the loop sees it."""

    @property
    def shown(self) -> torch.optim.Optimizer:
        """The optimizer whose settings and states are shown, saved and loaded."""
        ...

    @property
    def is_mended(self) -> bool:
        """Whether a step with infinite gradients is mended by a smaller factor of the loss."""
        ...

    def next_scale(self) -> float:
        """The factor of the loss, which the step undoes."""
        ...

    def load(self) -> None:
        """Take the gradients."""
        ...

    def norm(self) -> Tensor:
        """The norm of all gradients of the whole model."""
        ...

    def step(self) -> object:
        """Clip the gradients where that is stated, and change the parameters."""
        ...

    def zero_grad(self) -> None:
        """Let go of the gradients."""
        ...


class ShardedTrainee:
    """The sharded model: every device takes its shard of the batch."""

    def __init__(self, module: ShardedModule) -> None:
        self.module: nn.Module = module
        self.sharded = module
        self._variants, self._backends = held(module).variants, held(module).backends
        self._loss = held(module).program.loss
        self.has_loss = self._loss is not None

    def reader(self) -> Reader:
        """What this device reads of a whole batch."""
        return DeviceReader(self._variants.declared.inputs)

    def check(self, batch: Batch) -> None:
        """Batches of all sizes are taken."""

    def prepare(self, batch: Batch) -> Batch:
        """This device's shards; every input that is declared must be there."""
        return self._variants.shard((), batch, strict=True)

    def backward(self, batch: Batch, scale: float = 1.0) -> Tensor | None:
        """The loss, whole on every device; every parameter gets its gradient."""
        return from_loss(self._forward(batch), scale)

    def loss(self, batch: Batch) -> Tensor | None:
        """The loss, whole on every device. Collective."""
        return self._forward(self._variants.shard((), batch, strict=True))

    def _forward(self, batch: Batch) -> Tensor | None:
        loaded, shards = self._variants.choose((), batch)
        outputs = loaded.named_outputs(shards, self._backends.regions())
        return outputs[self._loss] if self._loss is not None else None

    def optimizer(self, rule: UpdateRule, precision: Precision = OWN_TYPES) -> Updates:
        """The optimizer on this device's parts."""
        return ShardedOptimizer(self.sharded, rule, precision)


def from_loss(loss: Tensor | None, scale: float) -> Tensor | None:
    """The loss, after its backward, which starts from a factor.

    Raises:
        RunError: SH0631, the loss needs no gradient.
    """
    if loss is not None and not loss.requires_grad:
        raise RunError(
            "SH0631",
            "the loss needs no gradient, so nothing can be trained by it",
            help="name the output that is the loss: `loss NAME`",
        )
    if loss is not None:
        given = torch.full_like(loss, scale, dtype=torch.float64).to(loss.dtype)
        loss.backward(given)  # type: ignore[no-untyped-call]
    return loss
