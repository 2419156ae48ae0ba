"""Autograd functions of a model's own: traced as their forward, if their backward derives it.

A traced graph holds the operators of the forward, whose derivative autograd knows. A backward that
computes something else, such as a straight-through gradient, would be lost. Which of the two it is
is tried in float64, on random operands of the traced shapes.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from shardlang.capture.errors import CaptureError, ModelLine, is_model_file
from shardlang.ir.arguments import Args, tensors_in
from shardlang.ir.compat import tree_map_only

LARGEST = 64
"""The size to which dims are cut for the trial; equal ones stay equal."""
TOLERANCE = 1e-8


@dataclass(frozen=True, slots=True)
class Used:
    """A use of an autograd function: its operands, tensors as shapes, and the model's line."""

    kind: type[torch.autograd.Function]
    args: Args
    source: str

    @staticmethod
    def of(kind: type[torch.autograd.Function], args: Args) -> Used:
        """The use that is being traced."""
        return Used(kind, tree_map_only(Tensor, _Shape.of, args), _line_now())


@dataclass(frozen=True, slots=True)
class _Shape:
    """What is known of an operand."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    trained: bool

    @staticmethod
    def of(tensor: Tensor) -> _Shape:
        return _Shape(tuple(tensor.shape), tensor.dtype, tensor.requires_grad)

    def drawn(self) -> Tensor:
        """A random tensor of the shape, cut; floats in double precision."""
        shape = tuple(min(size, LARGEST) for size in self.shape)
        if self.dtype.is_floating_point or self.dtype.is_complex:
            made = torch.randn(shape, dtype=torch.float64)
            return made.requires_grad_(self.trained)
        return torch.randint(0, 2, shape).to(self.dtype)


def check_own_backwards(used: list[Used]) -> None:
    """Raise SH0358 for a function whose backward is not the derivative of its forward."""
    for use in {(u.kind, u.source): u for u in used}.values():
        if not _is_derivative(use):
            raise CaptureError(
                "SH0358",
                f"the backward of `{use.kind.__name__}` is not the derivative of its forward, and a"
                " traced graph holds the forward alone",
                help="call it in a function marked `@shardlang.local(...)`, see docs/extending.md,"
                " or use operators alone, such as the straight-through `x + (f(x) - x).detach()`",
                source=use.source,
            )


def _is_derivative(use: Used) -> bool:
    """Whether both give the same gradients, on random operands."""
    try:
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            torch.manual_seed(0)
            args = tree_map_only(_Shape, _Shape.drawn, use.args)
            trained = [x for x in tensors_in(args) if x.requires_grad]
            apply: Callable[..., object] = use.kind.apply
            own = _gradients(apply(*args), trained)
            plain = _gradients(_forward(use.kind, args), trained)
    except Exception:
        return False
    return all(
        a is b is None
        or (a is not None and b is not None and torch.allclose(a, b, TOLERANCE, TOLERANCE))
        for a, b in zip(own, plain, strict=True)
    )


def _gradients(result: object, trained: list[Tensor]) -> tuple[Tensor | None, ...]:
    """The gradients of one weighted sum of all results."""
    tensors = [r for r in tensors_in(result) if r.requires_grad]
    torch.manual_seed(1)
    loss = sum((r * torch.randn_like(r)).sum() for r in tensors)
    assert isinstance(loss, Tensor)
    return torch.autograd.grad(loss, trained, allow_unused=True)


class _Context:
    """Takes what a forward keeps for its backward."""

    def __getattr__(self, name: str) -> object:
        return lambda *args, **kwargs: None


def _forward(kind: type[torch.autograd.Function], args: Args) -> object:
    """The forward alone, as autograd differentiates it."""
    if kind.setup_context is not torch.autograd.Function.setup_context:
        return kind.forward(*args)
    return kind.forward(_Context(), *args)


def _line_now() -> str:
    """The innermost line of the model's code that is running."""
    for frame in reversed(traceback.extract_stack()):
        if is_model_file(frame.filename):
            return ModelLine.of(frame.filename, frame.lineno)
    return ""
