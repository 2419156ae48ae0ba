"""The training loop, one for the sharded model and for the plain one that it is compared with."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from shardlang.runtime.calls import LoadedProgram
from shardlang.runtime.data import Batch
from shardlang.runtime.module import ShardedModule, held
from shardlang.runtime.optim import DEFAULT, GradNorm, clip, make_optimizer, squared_norm


class Trainee(Protocol):
    """A model as the loop sees it."""

    module: nn.Module

    def prepare(self, batch: Batch) -> Batch:
        """What this process needs of a whole batch."""
        ...

    def loss(self, batch: Batch) -> Tensor | None:
        """The loss of a prepared batch; None for a model without one."""
        ...

    def grad_norm(self) -> Tensor:
        """The norm of all gradients of the whole model."""
        ...


class ShardedTrainee:
    """The sharded model: every device takes its piece of the batch.

    `module_for` gives the program that runs on a batch of another size.
    """

    def __init__(
        self, module: ShardedModule, module_for: Callable[[Batch], LoadedProgram] | None = None
    ) -> None:
        self.module: nn.Module = module
        self._loaded, self._module_for = held(module).loaded, module_for
        self._loss = held(module).program.loss
        self.grad_norm = GradNorm(module)

    def prepare(self, batch: Batch) -> Batch:
        """This device's pieces."""
        if self._module_for is not None:
            self._loaded = self._module_for(batch)
        return self._loaded.input_pieces(batch)

    def loss(self, batch: Batch) -> Tensor | None:
        """The loss, whole on every device."""
        outputs = self._loaded.named_outputs(batch)
        return outputs[self._loss] if self._loss is not None else None


class PlainTrainee:
    """The ordinary model on one process."""

    def __init__(
        self,
        module: nn.Module,
        loss_of: Callable[[nn.Module, Batch], Tensor | None],
        device: torch.device | None = None,
    ) -> None:
        self._device = device or torch.device("cpu")
        self.module = module.to(self._device)
        self._loss_of = loss_of

    def prepare(self, batch: Batch) -> Batch:
        """The whole batch."""
        return {name: value.to(self._device) for name, value in batch.items()}

    def loss(self, batch: Batch) -> Tensor | None:
        """The loss, by the function that the caller gave."""
        return self._loss_of(self.module, batch)

    def grad_norm(self) -> Tensor:
        """The norm of all gradients."""
        return squared_norm(self.module.parameters(), self._device).sqrt()


@dataclass(frozen=True, slots=True)
class Record:
    """One step: `loss` and `grad_norm` are None for a model without a loss."""

    step: int
    loss: float | None
    grad_norm: float | None
    step_s: float
    tokens_per_s: float

    def as_json(self) -> dict[str, Any]:
        """The line that `run` prints."""
        return {
            "step": self.step,
            "loss": self.loss,
            "grad_norm": self.grad_norm,
            "step_s": round(self.step_s, 6),
            "tokens_per_s": round(self.tokens_per_s, 1),
        }


@dataclass(frozen=True, slots=True)
class Recipe:
    """How to train: the optimizer with its arguments (`clip` included), the steps and the seed."""

    steps: int
    optimizer: str = DEFAULT[0]
    arguments: Mapping[str, Any] = field(default_factory=lambda: dict(DEFAULT[1]))
    seed: int = 0


def train(trainee: Trainee, batches: Iterable[Batch], recipe: Recipe) -> Iterator[Record]:
    """Train step by step, yielding a record of each.

    `tokens` are the elements of the first two dims (batch and sequence) of the first integer input,
    or else the rows of the batch.

    Raises:
        RunError: SH0606, the optimizer cannot be made.
    """
    torch.manual_seed(recipe.seed)
    optimizer = make_optimizer(trainee.module.parameters(), recipe.optimizer, recipe.arguments)
    largest = recipe.arguments.get("clip")
    for step, whole in zip(range(1, recipe.steps + 1), batches, strict=False):
        batch = trainee.prepare(whole)
        began = time.perf_counter()
        loss, norm = _one_step(trainee, batch, optimizer, largest)
        taken = time.perf_counter() - began
        yield Record(step, loss, norm, taken, count_tokens(whole) / taken)


def _one_step(
    trainee: Trainee, batch: Batch, optimizer: torch.optim.Optimizer, largest: float | None
) -> tuple[float | None, float | None]:
    """Forward, backward and update; the loss and the norm of the gradients before clipping."""
    loss = trainee.loss(batch)
    if loss is None or not loss.requires_grad:
        return (None if loss is None else loss.item()), None
    loss.backward()  # type: ignore[no-untyped-call]
    norm = trainee.grad_norm()
    if largest is not None:
        clip(trainee.module.parameters(), norm, largest)
    optimizer.step()
    optimizer.zero_grad()
    return loss.item(), norm.item()


def count_tokens(batch: Batch) -> int:
    """Tokens of a whole batch, or its rows where it has no integer matrix."""
    for value in batch.values():
        if not value.is_floating_point() and value.dim() >= 2:
            return value.shape[0] * value.shape[1]
    return next((value.shape[0] for value in batch.values() if value.dim()), 1)
