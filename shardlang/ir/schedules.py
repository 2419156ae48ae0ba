"""Learning rates from step to step: phases of our own, and the schedulers of torch by name.

The rate of a parameter is that of its group times a factor. With `n` the steps of a phase, `a` the
factor at its beginning and `b` the one that it goes to, the factor of its step `k`, from 0 to
`n - 1`, is

- warmup: `(k + 1) / n`
- linear: `a + (b - a) * k / n`
- cosine: `b + (a - b) * (1 + cos(pi * k / n)) / 2`
- constant: `a`

and after the last phase it stays as it is. These are the closed forms of torch's `LinearLR` and
`CosineAnnealingLR`.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch.optim import lr_scheduler

from shardlang.ir.optimizers import ArgumentKind, kinds_of

PHASES: dict[str, tuple[str, ...]] = {
    "warmup": ("steps",),
    "constant": ("steps",),
    "linear": ("steps", "to"),
    "cosine": ("steps", "to"),
}
"""Our own phases, and what each is given."""

CANNOT = {
    "chainedlr": "it takes schedulers",
    "chainedscheduler": "it takes schedulers",
    "lambdalr": "it takes a function",
    "multiplicativelr": "it takes a function",
    "reducelronplateau": "it follows a value that is measured, and the steps alone are known here",
    "sequentiallr": "it takes schedulers",
}
"""The schedulers of torch that a text cannot state, and why."""

_NOT_OURS = ("self", "optimizer", "last_epoch", "scale_fn")


@dataclass(frozen=True, slots=True)
class Phase:
    """One phase, or a scheduler of torch, by name."""

    name: str
    arguments: Mapping[str, object]


Phases = Sequence[Phase]


def schedulers() -> dict[str, type[lr_scheduler.LRScheduler]]:
    """Every scheduler of this torch that a text can state, by its name in lower case."""
    found = (x for x in vars(lr_scheduler).values() if inspect.isclass(x))
    kinds = (x for x in found if issubclass(x, lr_scheduler.LRScheduler))
    named = {x.__name__.lower(): x for x in kinds if not x.__name__.startswith("_")}
    return {n: x for n, x in named.items() if n not in CANNOT and n != "lrscheduler"}


def made(
    name: str, optimizer: torch.optim.Optimizer, settings: Mapping[str, object]
) -> lr_scheduler.LRScheduler:
    """A scheduler of torch."""
    kind: Callable[..., lr_scheduler.LRScheduler] = schedulers()[name]
    return kind(optimizer, **settings)


def ends_before(name: str, settings: Mapping[str, object], steps: int) -> str:
    """Why a scheduler of torch does not last for so many steps, in torch's words; or empty.

    What a scheduler says of its end depends on the number of the step alone, so the last one is
    tried by itself.
    """
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0, momentum=0.5)
    scheduler = made(name, optimizer, settings)
    optimizer.step()
    scheduler.last_epoch = steps - 1
    try:
        scheduler.step()
    except ValueError as failure:
        return str(failure).splitlines()[0].rstrip(".")
    return ""


def arguments_of(name: str) -> dict[str, ArgumentKind]:
    """What a scheduler of torch may be given."""
    return kinds_of(schedulers()[name], _NOT_OURS)


def factor(phases: Phases, rate: float) -> Callable[[int], float]:
    """The factor of every step, from 0.

    Args:
        rate: the learning rate of the optimizer, of which `to` is another value.
    """

    def at(step: int) -> float:
        value = 1.0
        for phase in phases:
            steps = _number(phase, "steps")
            if step < steps:
                return _within(phase, value, step / steps, (step + 1) / steps, rate)
            value = _end(phase, value, rate)
            step -= int(steps)
        return value

    return at


def _number(phase: Phase, name: str) -> float:
    found = phase.arguments.get(name, 0.0)
    assert isinstance(found, (int, float)), f"`{name}` is no number"
    return float(found)


def _end(phase: Phase, value: float, rate: float) -> float:
    if phase.name == "warmup":
        return 1.0
    return value if phase.name == "constant" else _number(phase, "to") / rate


def _within(phase: Phase, begin: float, done: float, after: float, rate: float) -> float:
    end = _end(phase, begin, rate)
    if phase.name == "warmup":
        return after
    if phase.name == "cosine":
        return end + (begin - end) * (1 + math.cos(math.pi * done)) / 2
    return begin + (end - begin) * done
