"""What a run is saved and resumed by, entry by entry, in torch's `Stateful` protocol.

The names are those of the plain model, so that a state fits any mesh, and the plain model too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn

from shardlang.runtime.errors import RunError
from shardlang.runtime.trainer.trainees import Updates


class Stateful(Protocol):
    """Something that is saved and loaded."""

    def state_dict(self) -> dict[str, object]:
        """What is saved: tensors, numbers and text, in dicts and lists."""
        ...

    def load_state_dict(self, state_dict: dict[str, object]) -> None:
        """Be as what was saved."""
        ...


@dataclass(frozen=True, slots=True)
class ModelState:
    """Parameters and persistent buffers by name."""

    module: nn.Module

    def state_dict(self) -> dict[str, object]:
        """The tensors themselves."""
        return dict(self.module.state_dict())

    def load_state_dict(self, state_dict: dict[str, object]) -> None:
        """Copy values into the tensors."""
        self.module.load_state_dict(state_dict)


class OptimizerState:
    """States by the name of the parameter, and the settings of each group."""

    def __init__(self, updates: Updates) -> None:
        self._updates = updates

    def state_dict(self) -> dict[str, object]:
        """The states; before the first step, zeros of the same form.

        `begun` says which of the two. Collective before the first step.
        """
        shown, named = self._updates.shown, self._updates.named
        begun = bool(shown.state)
        if not begun:
            self._make_states()
        states = {name: dict(shown.state[x]) for name, x in named.items() if x in shown.state}
        if not begun:
            shown.state.clear()
        pairs = zip(shown.param_groups, self._names(), strict=True)
        groups = [{**group, "params": names} for group, names in pairs]
        return {"begun": begun, "states": states, "groups": groups}

    def _make_states(self) -> None:
        """Take a step by gradients of zeros, at a rate of zero: nothing changes by it."""
        shown, named = self._updates.shown, self._updates.named
        rates = [group["lr"] for group in shown.param_groups]
        for group in shown.param_groups:
            group["lr"] = 0.0
        for x in named.values():
            x.grad = torch.zeros_like(x)
        shown.step()
        for group, rate in zip(shown.param_groups, rates, strict=True):
            group["lr"] = rate
        self._updates.zero_grad()
        shown.zero_grad()

    def load_state_dict(self, state_dict: dict[str, object]) -> None:
        """Take over states and settings, of the parameters that both know.

        Raises:
            RunError: SH0608, the groups or their parameters differ.
        """
        shown, names = self._updates.shown, self._names()
        states, settings = _by_name(state_dict["states"]), state_dict["groups"]
        assert isinstance(settings, list), "groups are saved as a list"
        if [sorted(each["params"]) for each in settings] != [sorted(each) for each in names]:
            raise RunError(
                "SH0608",
                "the optimizer trains other parameters, or in other groups, than the saved one",
                help="resume with the `optimizer` and `group` statements of the run",
            )
        numbers = {name: i for i, name in enumerate(name for each in names for name in each)}
        known = {i: dict(states[name]) for name, i in numbers.items() if name in states}
        groups = [
            {**group, "params": [numbers[name] for name in each]}
            for group, each in zip(settings, names, strict=True)
        ]
        begun = known if state_dict["begun"] else {}
        shown.load_state_dict({"state": begun, "param_groups": groups})

    def _names(self) -> list[list[str]]:
        """The parameters of each group, by name."""
        names = {id(x): name for name, x in self._updates.named.items()}
        groups = self._updates.shown.param_groups
        return [[names[id(x)] for x in group["params"]] for group in groups]


def _by_name(states: object) -> dict[str, dict[str, object]]:
    assert isinstance(states, dict), "states are saved by name"
    return states


@dataclass(frozen=True, slots=True)
class Given:
    """An entry that two functions save and load."""

    give: Callable[[], dict[str, object]]
    take: Callable[[dict[str, object]], None]

    def state_dict(self) -> dict[str, object]:
        """What is saved."""
        return self.give()

    def load_state_dict(self, state_dict: dict[str, object]) -> None:
        """Be as what was saved."""
        self.take(state_dict)


States = Mapping[str, Stateful]
"""The entries of a run: `model`, `optimizer`, `learning_rate`, `random`, `data`, `trainer`."""
