"""Steps as differentiable functions on one device.

Both directions come from the one table in `shardlang.ir.steps`: the forward move of a step, and as
its derivative the backward move. (The functional collectives of torch differentiate an all-reduce
to another all-reduce, which doubles the gradients of a row-parallel layer on two devices.)
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from shardlang.ir.journey import router_at
from shardlang.ir.steps import Step
from shardlang.runtime.bundle import run_together
from shardlang.runtime.groups import Groups
from shardlang.runtime.moves import Action, Change, keep, lower
from shardlang.runtime.once import once
from shardlang.runtime.routes import Carry
from shardlang.runtime.wire import Wire


class _Apply(torch.autograd.Function):
    """One step: `forward` on the piece, `backward` on its gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, forward: Action, backward: Action) -> Tensor:
        ctx.back = backward
        return forward(x)

    @staticmethod
    @once
    def backward(ctx: Any, *grads: Any) -> Any:
        return ctx.back(grads[0]), None, None


class _ApplyTogether(torch.autograd.Function):
    """Several steps: their moves together, their gradients together."""

    @staticmethod
    def forward(ctx: Any, steps: RunSteps, *xs: Tensor) -> tuple[Tensor, ...]:
        ctx.steps = steps
        ctx.set_materialize_grads(False)
        return tuple(run_together(steps.forwards, xs))

    @staticmethod
    @once
    def backward(ctx: Any, *grads: Any) -> Any:
        found: list[Tensor | None] = [None] * len(grads)
        here = [i for i, grad in enumerate(grads) if grad is not None]
        if here:
            moves = [ctx.steps.backwards[i] for i in here]
            done = run_together(moves, [grads[i] for i in here])
            for i, grad in zip(here, done, strict=True):
                found[i] = grad
        return None, *found


class RunStep:
    """One step, ready to run: call it with this device's piece."""

    def __init__(self, step: Step, groups: Groups, where: str = "") -> None:
        self.label = label_of(step, where)
        self.forward = lower(Change.forward(step), groups, f"forward {self.label}")
        self.backward = lower(Change.backward(step), groups, f"backward {self.label}")
        self._trivial = self.forward is keep and self.backward is keep
        self._differentiable = step.reduce == "sum"

    def __call__(self, x: Tensor) -> Tensor:
        if self._trivial:
            return x
        if not self._differentiable:
            return self.forward(x.detach())
        if x.requires_grad and torch.is_grad_enabled():
            out: Tensor = _Apply.apply(x, self.forward, self.backward)  # type: ignore[no-untyped-call]
            return out
        return self.forward(x)


class RunSteps:
    """Several steps of one kind and group, ready to run as one call each way."""

    def __init__(self, steps: Sequence[Step], groups: Groups, where: str = "") -> None:
        self.label = label_of(steps[0], where)
        forward, backward = f"forward {self.label}", f"backward {self.label}"
        self.forwards = [lower(Change.forward(step), groups, forward) for step in steps]
        self.backwards = [lower(Change.backward(step), groups, backward) for step in steps]

    def __call__(self, xs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        if torch.is_grad_enabled() and any(x.requires_grad for x in xs):
            out: tuple[Tensor, ...] = _ApplyTogether.apply(self, *xs)  # type: ignore[no-untyped-call]
            return out
        return tuple(run_together(self.forwards, xs))


class RunRoute:
    """A dispatch or collect, ready to run: call it with this device's rows and all groups."""

    def __init__(self, step: Step, groups: Groups, where: str = "") -> None:
        assert step.route is not None
        self.label = label_of(step, where)
        self.router = router_at(step.route.at(groups.coord), groups.device)
        wire = Wire(groups.of(step.axes))
        self.forward = Carry(wire, f"forward {self.label}", step.route.inverse)
        self.backward = Carry(wire, f"backward {self.label}", not step.route.inverse)

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def __call__(self, x: Tensor, by: Tensor) -> Tensor:
        journey = self.router.journey(by)
        forward = functools.partial(self.forward, journey=journey)
        if x.requires_grad and torch.is_grad_enabled():
            backward = functools.partial(self.backward, journey=journey)
            out: Tensor = _Apply.apply(x, forward, backward)  # type: ignore[no-untyped-call]
            return out
        return forward(x)


def label_of(step: Step, where: str = "") -> str:
    """The step's name for messages: `all_reduce over tp in layers.0.mlp`."""
    axes = "*".join(axis.name for axis in step.axes)
    return f"{step.kind} over {axes}" + (f" in {where}" if where else "")
