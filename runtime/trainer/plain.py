"""The ordinary model on one process, as a training loop sees it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from shardlang.ir.optimizers import UpdateRule
from shardlang.ir.precision import OWN_TYPES, LossScale, Precision
from shardlang.runtime.data import Batch
from shardlang.runtime.loss_scale import first_settings, is_mended, note_step, scale_of
from shardlang.runtime.optim import make_optimizer
from shardlang.runtime.trainer.trainees import Updates, from_loss
from shardlang.runtime.update import Part, clip, squared_norm


class PlainTrainee:
    """The ordinary model on one process."""

    def __init__(
        self,
        module: nn.Module,
        loss_of: Callable[[nn.Module, Batch], Tensor | None],
        device: torch.device | None = None,
        has_loss: bool = True,
    ) -> None:
        self.has_loss = has_loss
        self._device = device or torch.device("cpu")
        self.module = module.to(self._device)
        self._loss_of = loss_of

    def check(self, batch: Batch) -> None:
        """Batches of all sizes are taken."""

    def prepare(self, batch: Batch) -> Batch:
        """The whole batch."""
        return {
            name: value.to(self._device) if isinstance(value, Tensor) else value
            for name, value in batch.items()
        }

    def backward(self, batch: Batch, scale: float = 1.0) -> Tensor | None:
        """The loss, by the function that the caller gave; every parameter gets its gradient."""
        return from_loss(self._loss_of(self.module, batch), scale)

    def loss(self, batch: Batch) -> Tensor | None:
        """The loss, by the function that the caller gave."""
        return self._loss_of(self.module, self.prepare(batch))

    def optimizer(self, rule: UpdateRule, precision: Precision = OWN_TYPES) -> Updates:
        """The optimizer of torch."""
        params = {name: x for name, x in self.module.named_parameters() if x.requires_grad}
        parts = {name: Part.of(x, None, precision.master) for name, x in params.items()}
        inner = make_optimizer({name: part.tensor for name, part in parts.items()}, rule)
        settings = first_settings(precision.loss_scale)
        return _PlainUpdates(
            params, parts, inner, self._device, rule.clip, precision.loss_scale, settings
        )


@dataclass(frozen=True, slots=True)
class _PlainUpdates:
    params: Mapping[str, nn.Parameter]
    parts: Mapping[str, Part]
    inner: torch.optim.Optimizer
    device: torch.device
    largest: float | None
    scaling: LossScale | None
    settings: dict[str, float]

    @property
    def shown(self) -> torch.optim.Optimizer:
        """The optimizer of torch."""
        return self.inner

    @property
    def is_mended(self) -> bool:
        """Whether a step with infinite gradients is mended by a smaller factor of the loss."""
        return is_mended(self.settings, self.scaling)

    def next_scale(self) -> float:
        """The factor of the loss."""
        return scale_of(self.settings, self.scaling)

    def load(self) -> None:
        """Take the gradients."""
        scale = self.next_scale()
        for name, part in self.parts.items():
            given = self.params[name].grad
            part.tensor.grad = None if given is None else part.of_gradient(given, scale)

    def norm(self) -> Tensor:
        """The norm of all gradients."""
        return squared_norm((part.tensor.grad for part in self.parts.values()), self.device).sqrt()

    def step(self) -> None:
        """Clip the gradients, and change the parameters."""
        if self.scaling is not None:
            finite = math.isfinite(self.norm().item())
            note_step(self.settings, self.scaling, finite)
            if not finite:
                return
        if self.largest is not None:
            clip([part.tensor for part in self.parts.values()], self.norm(), self.largest)
        self.inner.step()
        for part in self.parts.values():
            part.give()

    def zero_grad(self) -> None:
        """Let go of the gradients."""
        self.inner.zero_grad()
        for param in self.params.values():
            param.grad = None
