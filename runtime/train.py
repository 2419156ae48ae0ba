"""The training loop, one for the sharded model and for the plain one that it is compared with."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

from shardlang.ir.precision import OWN_TYPES, LossScale, Precision
from shardlang.runtime.data import Batch
from shardlang.runtime.errors import RunError
from shardlang.runtime.loss_scale import first_settings, is_mended, note_step, scale_of
from shardlang.runtime.module import ShardedModule, held
from shardlang.runtime.optim import DEFAULT, ShardedOptimizer, make_optimizer
from shardlang.runtime.update import Part, clip, squared_norm


class Trainee(Protocol):
    """A model as the loop sees it; without a loss each step runs the forward alone."""

    module: nn.Module
    has_loss: bool

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

    def optimizer(
        self, name: str, arguments: Mapping[str, object], precision: Precision = OWN_TYPES
    ) -> Updates:
        """The optimizer by name, for what is trained, with the types that are stated."""
        ...


class Updates(Protocol):
    """An optimizer as the loop sees it."""

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
        self._sharded = module
        self._variants, self._backends = held(module).variants, held(module).backends
        self._loss = held(module).program.loss
        self.has_loss = self._loss is not None

    def prepare(self, batch: Batch) -> Batch:
        """This device's shards; every input that is declared must be there."""
        return self._variants.shard((), batch, strict=True)

    def backward(self, batch: Batch, scale: float = 1.0) -> Tensor | None:
        """The loss, whole on every device; every parameter gets its gradient."""
        loaded, shards = self._variants.choose((), batch)
        outputs = loaded.named_outputs(shards, self._backends.regions())
        return _from_loss(outputs[self._loss] if self._loss is not None else None, scale)

    def optimizer(
        self, name: str, arguments: Mapping[str, object], precision: Precision = OWN_TYPES
    ) -> Updates:
        """The optimizer on this device's parts."""
        return ShardedOptimizer(self._sharded, name, arguments, precision)


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

    def prepare(self, batch: Batch) -> Batch:
        """The whole batch."""
        return {
            name: value.to(self._device) if isinstance(value, Tensor) else value
            for name, value in batch.items()
        }

    def backward(self, batch: Batch, scale: float = 1.0) -> Tensor | None:
        """The loss, by the function that the caller gave; every parameter gets its gradient."""
        return _from_loss(self._loss_of(self.module, batch), scale)

    def optimizer(
        self, name: str, arguments: Mapping[str, object], precision: Precision = OWN_TYPES
    ) -> Updates:
        """The optimizer of torch."""
        params = [param for param in self.module.parameters() if param.requires_grad]
        parts = [Part.of(param, None, precision.master) for param in params]
        clip = arguments.get("clip")
        largest = clip if isinstance(clip, (int, float)) else None
        inner = make_optimizer([part.tensor for part in parts], name, arguments)
        settings = first_settings(precision.loss_scale)
        return _PlainUpdates(
            params, parts, inner, self._device, largest, precision.loss_scale, settings
        )


@dataclass(frozen=True, slots=True)
class _PlainUpdates:
    params: Sequence[nn.Parameter]
    parts: Sequence[Part]
    inner: torch.optim.Optimizer
    device: torch.device
    largest: float | None
    scaling: LossScale | None
    settings: dict[str, float]

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
        for param, part in zip(self.params, self.parts, strict=True):
            given = param.grad
            part.tensor.grad = None if given is None else part.of_gradient(given, scale)

    def norm(self) -> Tensor:
        """The norm of all gradients."""
        return squared_norm((part.tensor.grad for part in self.parts), self.device).sqrt()

    def step(self) -> None:
        """Clip the gradients, and change the parameters."""
        if self.scaling is not None:
            finite = math.isfinite(self.norm().item())
            note_step(self.settings, self.scaling, finite)
            if not finite:
                return
        if self.largest is not None:
            clip([part.tensor for part in self.parts], self.norm(), self.largest)
        self.inner.step()
        for part in self.parts:
            part.give()

    def zero_grad(self) -> None:
        """Let go of the gradients."""
        self.inner.zero_grad()
        for param in self.params:
            param.grad = None


@dataclass(frozen=True, slots=True)
class Record:
    """One step: `loss` and `grad_norm` are None for a model without a loss.

    Where one of them is not finite, the step changed no parameter.

    Attributes:
        skipped: the gradients were not finite, and the next loss is multiplied by less.
    """

    step: int
    loss: float | None
    grad_norm: float | None
    step_s: float
    tokens_per_s: float
    skipped: bool = False

    @property
    def not_finite(self) -> dict[str, str]:
        """What is not finite, in words: `nan`, `inf` or `-inf`."""
        found = {"loss": self.loss, "grad_norm": self.grad_norm}
        return {k: str(v) for k, v in found.items() if v is not None and not math.isfinite(v)}

    def as_json(self) -> dict[str, object]:
        """The line that `run` prints; a number that JSON cannot hold is null and said apart."""
        wrong = self.not_finite
        line: dict[str, object] = {
            "step": self.step,
            "loss": None if "loss" in wrong else self.loss,
            "grad_norm": None if "grad_norm" in wrong else self.grad_norm,
            "step_s": round(self.step_s, 6),
            "tokens_per_s": round(self.tokens_per_s, 1),
        }
        if wrong:
            line["not_finite"] = wrong
        return {**line, "skipped": True} if self.skipped else line


@dataclass(frozen=True, slots=True)
class Recipe:
    """How to train: the optimizer with its arguments (`clip` included), the steps and the seed.

    Attributes:
        precision: the types that are stated, and the factor of the loss.
    """

    steps: int
    optimizer: str = DEFAULT[0]
    arguments: Mapping[str, object] = field(default_factory=lambda: dict(DEFAULT[1]))
    seed: int = 0
    precision: Precision = OWN_TYPES


def train(trainee: Trainee, batches: Iterable[Batch], recipe: Recipe) -> Iterator[Record]:
    """Train step by step, yielding a record of each. Ends at a step that is not finite.

    It goes on where a smaller factor of the loss may mend that.

    `tokens` are the elements of the first two dims (batch and sequence) of the first integer input,
    or else the rows of the batch.

    Raises:
        RunError: SH0606, the optimizer cannot be made; SH0631, nothing can be trained.
    """
    torch.manual_seed(recipe.seed)
    _check_trainable(trainee)
    optimizer = trainee.optimizer(recipe.optimizer, recipe.arguments, recipe.precision)
    for step, whole in zip(range(1, recipe.steps + 1), batches, strict=False):
        batch = trainee.prepare(as_batch(whole))
        began = time.perf_counter()
        made = one_step(trainee, batch, optimizer)
        taken = time.perf_counter() - began
        speed = count_tokens(whole) / taken
        record = Record(step, made.loss, made.norm, taken, speed, made.skipped)
        yield record
        if record.not_finite and not record.skipped:
            return


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


def _check_trainable(trainee: Trainee) -> None:
    if trainee.has_loss and not any(p.requires_grad for p in trainee.module.parameters()):
        raise RunError(
            "SH0631",
            "the model has no parameter that can be trained",
            help="let one have `requires_grad`; `shardlang verify` compares outputs without",
        )


@dataclass(frozen=True, slots=True)
class Done:
    """What a step gave: the loss and the norm of the gradients before clipping.

    Attributes:
        skipped: the gradients were not finite, and the next loss is multiplied by less.
    """

    loss: float | None = None
    norm: float | None = None
    skipped: bool = False


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


def _from_loss(loss: Tensor | None, scale: float) -> Tensor | None:
    """The loss, after its backward, which starts from a factor."""
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


def count_tokens(batch: Batch) -> int:
    """Tokens of a whole batch, or its rows where it has no integer matrix."""
    tensors = [value for value in batch.values() if isinstance(value, Tensor)]
    for value in tensors:
        if not value.is_floating_point() and value.dim() >= 2:
            return value.shape[0] * value.shape[1]
    return next((value.shape[0] for value in tensors if value.dim()), 1)
