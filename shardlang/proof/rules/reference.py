"""The plain op on one device: its results, and the gradients of its operands."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from shardlang.ir.arguments import tensors_in
from shardlang.proof.rules.calls import AtenCall

PARTS = 7
"""Number of summands of an operand that is passed as a partial sum."""

TOLERANCE = {torch.float32: 1e-5, torch.complex64: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}
"""Largest relative error by dtype; 1e-9 for all that are not named."""

SEED = 1234


def differentiable(x: Tensor) -> bool:
    """Whether gradients can flow to a tensor."""
    return x.is_floating_point() or x.is_complex()


Run = Callable[[list[Tensor]], object]


class Reference:
    """Results, cotangents and gradients of the plain op, or of what `run` puts in its place."""

    def __init__(self, call: AtenCall, partial: frozenset[int], run: Run | None = None) -> None:
        self.run = call.run if run is None else run
        self.is_unset = call.is_unset
        generator = torch.Generator().manual_seed(SEED)
        self.leaves = [
            (_summands(x, generator) if i in partial else x.detach().clone())
            for i, x in enumerate(call.tensors)
        ]
        self.trainable = [differentiable(x) for x in self.leaves]
        if not self._works(partial):
            count = range(len(self.leaves))
            alone = [[i == j and t for j, t in enumerate(self.trainable)] for i in count]
            self.trainable = [
                self._works(partial, each) and each[i] for i, each in enumerate(alone)
            ]
        self._run(partial, generator)

    @property
    def tolerance(self) -> float:
        """Largest relative error: that of the least precise dtype."""
        return max(TOLERANCE.get(x.dtype, 1e-9) for x in (*self.leaves, *self.results))

    def _works(self, partial: frozenset[int], trainable: list[bool] | None = None) -> bool:
        """Whether the op has a derivative for these operands."""
        kept = self.trainable
        self.trainable = kept if trainable is None else trainable
        try:
            self._run(partial, torch.Generator())
        except (RuntimeError, NotImplementedError):
            return False
        finally:
            self.trainable = kept
        return True

    def _run(self, partial: frozenset[int], generator: torch.Generator) -> None:
        """Run the op forward and backward."""
        fed = [
            x.detach().clone().requires_grad_() if trainable else x
            for x, trainable in zip(self.leaves, self.trainable, strict=True)
        ]
        torch.manual_seed(SEED)
        summed = [x.sum(0) if i in partial else x.clone() for i, x in enumerate(fed)]
        self.results = tensors_in(self.run(summed))
        if len(self.results) > 1:
            self.results = self._as_run(summed)
        self.cotangents = [_random_like(y, generator) for y in self.results]
        self.gradients = gradients(self.results, self.cotangents, fed)

    def _as_run(self, operands: Sequence[Tensor]) -> list[Tensor]:
        """The results, those without a gradient as a program gives them, which asks for none.

        `embedding_bag` gives counts of another shape then.
        """
        torch.manual_seed(SEED)
        with torch.no_grad():
            made = tensors_in(self.run([x.detach().clone() for x in operands]))
        pairs = zip(self.results, made, strict=True)
        return [x if x.requires_grad else other for x, other in pairs]


def _summands(x: Tensor, generator: torch.Generator) -> Tensor:
    """`PARTS` random tensors whose sum is `x`."""
    summands = [_random_like(x, generator) for _ in range(PARTS - 1)]
    return torch.stack([*summands, x - sum(summands)]).to(x.dtype)


def _random_like(x: Tensor, generator: torch.Generator) -> Tensor:
    if differentiable(x):
        return torch.randn(x.shape, dtype=x.dtype, generator=generator)
    return torch.randint(-3, 4, x.shape, generator=generator).to(x.dtype)


def gradients(
    results: Sequence[Tensor], cotangents: Sequence[Tensor], leaves: Sequence[Tensor]
) -> list[Tensor | None]:
    """The gradient of every leaf that has one."""
    pairs = [(y, c) for y, c in zip(results, cotangents, strict=True) if y.requires_grad]
    wanted = [x for x in leaves if x.requires_grad]
    if not pairs or not wanted:
        return [None] * len(leaves)
    roots, seeds = [y for y, _ in pairs], [c for _, c in pairs]
    found = iter(torch.autograd.grad(roots, wanted, seeds, allow_unused=True))
    given = [next(found) if x.requires_grad else None for x in leaves]
    return [None if x is None else dense(x) for x in given]


def dense(gradient: Tensor) -> Tensor:
    """A gradient with all of its zeros."""
    return gradient.to_dense() if gradient.is_sparse else gradient
