"""The optimizers of torch by name, and the rule by which a spec lets one update its parameters.

One works on this device's parts if its update of a number reads that number's own gradient and
states, and nothing else of the tensor. Those that do are listed; `tests/runtime/test_optimizers.py`
compares each with its own update of whole tensors.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import torch

ELEMENTWISE = (
    "adadelta", "adagrad", "adam", "adamax", "adamw", "asgd", "nadam", "radam", "rmsprop", "rprop",
    "sgd",
)  # fmt: skip
"""Those that update every number by itself."""

WHOLE = {
    "adafactor": "it scales a matrix by means over its rows and columns",
    "lbfgs": "it takes all parameters for one vector, and asks for the loss several times a step",
    "muon": "it makes a matrix orthogonal, by products of all of it",
    "sparseadam": "it takes sparse gradients, and those of a program are dense",
}
"""Those that do not, and why."""

SPARSE = ("sparseadam",)
"""Of these, those that a loop of one's own cannot use either: no gradient is sparse."""

NOT_OURS = ("self", "params", "differentiable", "capturable")
"""What is no setting of an update: nothing differentiates through it, or captures it."""

ArgumentKind: TypeAlias = Literal["number", "positive", "pair", "flag", "text", "numbers"]


def classes() -> dict[str, type[torch.optim.Optimizer]]:
    """Every optimizer of this torch, by its name in lower case."""
    found = (x for x in vars(torch.optim).values() if inspect.isclass(x))
    kinds = (x for x in found if issubclass(x, torch.optim.Optimizer))
    return {x.__name__.lower(): x for x in kinds if x is not torch.optim.Optimizer}


def made(
    name: str, params: Iterable[object], settings: Mapping[str, object]
) -> torch.optim.Optimizer:
    """An optimizer of torch, for parameters or groups of them."""
    kind: Callable[..., torch.optim.Optimizer] = classes()[name]
    return kind(params, **settings)


def why_not(name: str) -> str | None:
    """Why an optimizer of torch does not work on parts; None if it does."""
    if name in ELEMENTWISE:
        return None
    return WHOLE.get(name, "nobody has shown that it updates every number by itself")


def arguments_of(name: str) -> dict[str, ArgumentKind]:
    """What an optimizer may be given, from its signature; of a flag, None is the default."""
    return kinds_of(classes()[name], NOT_OURS)


def kinds_of(kind: type, without: Collection[str]) -> dict[str, ArgumentKind]:
    """The kind of each argument of a class, by its default or its annotation."""
    given = inspect.signature(kind).parameters.values()
    return {x.name: _kind(x) for x in given if x.name not in without}


def _kind(argument: inspect.Parameter) -> ArgumentKind:
    default, said = argument.default, str(argument.annotation)
    if isinstance(default, bool) or (default is None and "bool" in said):
        return "flag"
    if isinstance(default, str):
        return "text"
    if isinstance(default, tuple):
        return "pair"
    return "numbers" if "Iterable" in said else "number"


@dataclass(frozen=True, slots=True)
class GroupRule:
    """Parameters with settings of their own.

    Attributes:
        names: all names of the parameters, those of tied ones included.
        arguments: the settings that differ from those of the others.
    """

    names: frozenset[str]
    arguments: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class UpdateRule:
    """An optimizer by name, its arguments, and the groups with others.

    Attributes:
        arguments: `clip` included, the largest norm of all gradients together.
        groups: no parameter is in two of them.
        assumed: nobody has stated it.
    """

    name: str = "adamw"
    arguments: Mapping[str, object] = field(default_factory=lambda: {"lr": 1e-3})
    groups: tuple[GroupRule, ...] = ()
    assumed: bool = False

    @property
    def clip(self) -> float | None:
        """The largest norm of all gradients."""
        found = self.arguments.get("clip")
        return float(found) if isinstance(found, (int, float)) else None

    @property
    def title(self) -> str:
        """The name, and whether it is assumed."""
        return f"{self.name} (assumed)" if self.assumed else self.name

    @property
    def settings(self) -> dict[str, object]:
        """The arguments that are the optimizer's own."""
        return {key: value for key, value in self.arguments.items() if key != "clip"}

    def settings_of(self, name: str) -> dict[str, object]:
        """The settings of one parameter."""
        group = next((each for each in self.groups if name in each.names), None)
        return {**self.settings, **(group.arguments if group is not None else {})}

    def grouped(self, names: Collection[str]) -> list[tuple[list[str], Mapping[str, object]]]:
        """Parameters and what differs, first of all that are in no group; none is empty."""
        rest = [n for n in names if not any(n in each.names for each in self.groups)]
        found = [([n for n in names if n in x.names], x.arguments) for x in self.groups]
        return [(mine, own) for mine, own in [(rest, {}), *found] if mine]


ASSUMED = UpdateRule(assumed=True)
"""Where a spec states no optimizer."""
