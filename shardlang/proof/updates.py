"""Two updates: the parameters and the optimizer's states after them, beside the plain model's.

The second forward and backward run on what the first update left on every device, so a parameter
that is gathered too early, or not at all, shows. Every device's optimizer and what joins them are
those of the run (`runtime.update`, `UpdateProgram`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor, nn

from shardlang.ir.accumulated import mesh_of
from shardlang.ir.leaf import Leaf
from shardlang.ir.optimizers import ASSUMED, UpdateRule, arguments_of
from shardlang.ir.program import LocalProgram
from shardlang.passes.step.write_update import write_update
from shardlang.proof.compare import difference, largest
from shardlang.proof.reference import Reference
from shardlang.runtime.optim import make_optimizer
from shardlang.runtime.simulate import PerDevice
from shardlang.runtime.simulate_step import GraphSimulator
from shardlang.runtime.update import DeviceUpdate, clip, squared_norm

LEAST_EPS = 1e-6
"""Adam divides by the size of a gradient and eps. Where a gradient is nothing but rounding, so is
the quotient for a small eps: the proof takes no smaller one than this."""

ROUNDING = 1e-12
"""What is smaller in a gradient in float64 is taken for rounding where its sign alone counts."""

UPDATES = 2


@dataclass(frozen=True, slots=True)
class Recipe:
    """The optimizer, and what its update is beside the parameters'.

    Attributes:
        masters: the parameters that have master weights.
        scale: by what the loss is multiplied; None where the spec says nothing of it.
    """

    rule: UpdateRule = ASSUMED
    masters: frozenset[str] = frozenset()
    scale: float | None = None

    def __str__(self) -> str:
        return self.rule.name

    @property
    def provable(self) -> UpdateRule:
        """The optimizer, with an eps that rounding does not swamp."""
        if "eps" not in arguments_of(self.rule.name):
            return self.rule
        groups = (
            replace(x, arguments=_steady(x.arguments)) if "eps" in x.arguments else x
            for x in self.rule.groups
        )
        return replace(self.rule, arguments=_steady(self.rule.arguments), groups=tuple(groups))

    @property
    def largest(self) -> float | None:
        """The norm that gradients are clipped to."""
        return self.rule.clip

    def steady(self, gradient: Tensor) -> Tensor:
        """A gradient whose rounding decides nothing.

        Rprop follows the sign of a gradient alone, so what is nothing but rounding is zero to it.
        """
        if self.rule.name != "rprop" or not gradient.numel():
            return gradient
        return gradient.where(gradient.abs() > ROUNDING, 0.0)


def _steady(arguments: Mapping[str, object]) -> dict[str, object]:
    eps = arguments.get("eps")
    return {**arguments, "eps": max(eps if isinstance(eps, float) else 0.0, LEAST_EPS)}


ADAMW = Recipe()
"""Where a spec states no optimizer."""


def compare_updates(
    program: LocalProgram, reference: Reference, run: Ran, recipe: Recipe
) -> dict[str, float]:
    """The largest difference of every parameter and of its states, after two updates.

    Args:
        run: the simulated devices after a forward and backward, which stand as `reference` says.
    """
    names = {name for name, x in reference.gradients.items() if x is not None} | set(run.gradients)
    leaves = [leaf for leaf in program.leaves if leaf.name in names]
    plain, devices = _Plain(reference, leaves, recipe), _Devices(program, leaves, run, recipe)
    for _ in range(UPDATES - 1):
        plain.step(reference)
        devices.step(run)
        values = {**reference.values, **plain.values}
        reference = Reference(reference.setting.of(reference.graph, values))
        run = run.again(reference, devices.values)
    plain.step(reference)
    devices.step(run)
    if recipe.scale is not None:
        devices.step(_overflown(run, leaves))
    return _differences(plain, devices, leaves)


def _overflown(run: Ran, leaves: Sequence[Leaf]) -> Ran:
    """The same run, in which what the last device has of every gradient is infinite.

    No device may step by it, whatever its own gradients are.
    """
    last = run.coords[-1]
    for leaf in leaves:
        split = [axis.name for axis in leaf.layout.sharded]
        for at, gradient in zip(run.coords, run.gradients[leaf.name], strict=True):
            if all(at[name] == last[name] for name in split):
                gradient.fill_(math.inf)
    return run


class Ran(Protocol):
    """Simulated devices after a forward and backward."""

    coords: list[dict[str, int]]
    leaves: dict[str, PerDevice]
    gradients: dict[str, PerDevice]

    def again(self, reference: Reference, values: Mapping[str, PerDevice]) -> Ran:
        """The same once more, on parameters that an update left."""
        ...


class _Plain:
    """The plain model's parameters and their optimizer."""

    def __init__(self, reference: Reference, leaves: Sequence[Leaf], recipe: Recipe) -> None:
        self.params = {x.name: nn.Parameter(reference.values[x.name].clone()) for x in leaves}
        self.recipe = recipe
        self.optimizer = make_optimizer(self.params, recipe.provable)

    @property
    def values(self) -> dict[str, Tensor]:
        """The parameters now."""
        return {name: x.detach() for name, x in self.params.items()}

    def step(self, reference: Reference) -> None:
        """One update by the gradients of a reference."""
        for name, x in self.params.items():
            given = reference.gradients[name]
            x.grad = None if given is None else self.recipe.steady(given.clone())
        if self.recipe.largest is not None:
            squares = squared_norm((x.grad for x in self.params.values()), torch.device("cpu"))
            clip(self.params.values(), squares.sqrt(), self.recipe.largest)
        self.optimizer.step()


class _Devices:
    """Every device's parts of the parameters, and the optimizers on them."""

    def __init__(
        self, program: LocalProgram, leaves: Sequence[Leaf], run: Ran, recipe: Recipe
    ) -> None:
        self.program, self.recipe, self.coords = program, recipe, run.coords
        self.names = [leaf.name for leaf in leaves]
        self.values = {leaf.name: run.leaves[leaf.name] for leaf in leaves}
        mesh, masters = mesh_of(program), recipe.masters
        self.parts = [
            DeviceUpdate(leaves, {n: x[d] for n, x in self.values.items()}, mesh, at, apart=masters)
            for d, at in enumerate(run.coords)
        ]
        self.optimizers = [make_optimizer(each.named, recipe.provable) for each in self.parts]
        self.update = write_update(program, self.names)

    def states(self, name: str) -> list[dict[str, Tensor]]:
        """A parameter's states on every device."""
        pairs = zip(self.optimizers, self.parts, strict=True)
        return [_states(optimizer, each.parts[name].tensor) for optimizer, each in pairs]

    def step(self, run: Ran) -> None:
        """One update by the gradients of a run, those of a loss that is scaled as stated."""
        scale = self.recipe.scale or 1.0
        for d, each in enumerate(self.parts):
            each.load(
                {n: self.recipe.steady(x[d]) * scale for n, x in run.gradients.items()}, scale
            )
        norm = torch.stack([each.squares() for each in self.parts]).sum().sqrt()
        for each, optimizer in zip(self.parts, self.optimizers, strict=True):
            if self.recipe.scale is not None and not each.may_step(norm):
                continue
            if self.recipe.largest is not None:
                each.clip(norm, self.recipe.largest)
            each.step(optimizer)
        for each in self.parts:
            each.give()
        given = [each.held(self.update.names) for each in self.parts]
        mesh = mesh_of(self.program)
        GraphSimulator(mesh, self.update.graph).execute(list(zip(*given, strict=True)))
        for each in self.parts:
            each.settle()


def _differences(plain: _Plain, devices: _Devices, leaves: Sequence[Leaf]) -> dict[str, float]:
    values = plain.values
    states = {name: _states(plain.optimizer, x) for name, x in plain.params.items()}
    tops = {key: largest({n: x.get(key) for n, x in states.items()}) for key in _keys(states)}
    top, found = largest(values), dict[str, float]()
    for leaf in leaves:
        name, wide = leaf.name, leaf.at_rest
        found[name] = difference(devices.values[name], values[name], wide, devices.coords, top)
        own = devices.states(name)
        for key in sorted({*states[name], *own[0]}):
            want, shards = states[name].get(key), [state.get(key) for state in own]
            there = [x for x in shards if x is not None]
            error = math.inf
            if want is not None and len(there) == len(shards):
                error = difference(there, want, leaf.layout, devices.coords, tops[key])
            found[f"{key} of {name}"] = error
    return found


def _keys(states: Mapping[str, Mapping[str, Tensor]]) -> set[str]:
    return {key for one in states.values() for key in one}


def _states(optimizer: torch.optim.Optimizer, x: Tensor) -> dict[str, Tensor]:
    """The states that are as large as the parameter."""
    return {
        key: value
        for key, value in optimizer.state[x].items()
        if isinstance(value, Tensor) and value.shape == x.shape and value.dim()
    }
