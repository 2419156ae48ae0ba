"""What a checkpoint holds of a run: modules, optimizers, and whatever else has a state dict.

The states of an optimizer go by the names of the parameters, not by their numbers, and lie as the
optimizer lays them: so they are found again by another optimizer on another mesh.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from shardlang.runtime.checkpoint.named_states import NamedStates
from shardlang.runtime.errors import RunError


@runtime_checkable
class Stateful(Protocol):
    """Whatever else is saved and resumed."""

    def state_dict(self) -> Mapping[str, object]:
        """What must be kept."""
        ...

    def load_state_dict(self, state_dict: dict[str, object], /) -> object:
        """Go on from there."""
        ...


Part = nn.Module | Optimizer | Stateful
"""What a run hands in, by the name of its entry."""


class Entry(Protocol):
    """One entry of a checkpoint."""

    def tree(self) -> Mapping[str, object]:
        """Its values and tensors."""
        ...

    def target(self, path: str, size: torch.Size, dtype: torch.dtype) -> Tensor:
        """Where the values of a tensor are read to.

        Raises:
            RunError: SH0608, there is no place for it.
        """
        ...

    def load(self, tree: Mapping[str, object]) -> None:
        """Take over what was read."""
        ...


def entries_of(state: Mapping[str, Part]) -> dict[str, Entry]:
    """The entries of a state, by name."""
    for name, part in state.items():
        _check(name, part)
    modules = {name: part for name, part in state.items() if isinstance(part, nn.Module)}
    return {name: _entry(name, part, modules) for name, part in state.items()}


def _check(name: object, part: object) -> None:
    """Raise SH0663 if a part cannot be saved."""
    if not isinstance(name, str):
        what = f"the name {name!r} of a part is a `{type(name).__name__}`"
        raise RunError("SH0663", what, help="name the parts by strings")
    if not isinstance(part, Stateful):
        raise RunError(
            "SH0663",
            f"`{name}` is a `{type(part).__name__}`, which has no `state_dict` and"
            " `load_state_dict`",
            help="hand in modules, optimizers, and objects that have both",
        )


def _entry(name: str, part: Part, modules: Mapping[str, nn.Module]) -> Entry:
    if isinstance(part, nn.Module):
        return OfModule(name, part)
    if isinstance(part, Optimizer):
        return OfOptimizer(name, part, names_of(name, part, modules))
    return OfOthers(part)


def names_of(
    entry: str, optimizer: Optimizer, modules: Mapping[str, nn.Module]
) -> dict[Tensor, str]:
    """The names of an optimizer's parameters in the modules that are saved with it.

    Raises:
        RunError: SH0663, a parameter belongs to none of them.
    """
    found: dict[Tensor, str] = {}
    for module, part in modules.items():
        for name, param in part.named_parameters():
            found.setdefault(param, name if len(modules) == 1 else f"{module}.{name}")
    params = [param for group in optimizer.param_groups for param in group["params"]]
    if any(param not in found for param in params):
        raise RunError(
            "SH0663",
            f"`{entry}` trains a parameter that belongs to no module of this state",
            help='hand in the module too: `save(step, {"model": model, "optimizer": optimizer})`',
        )
    return {param: found[param] for param in params}


class OfModule:
    """A module: its own tensors are written to where they lie."""

    def __init__(self, name: str, module: nn.Module) -> None:
        self._name, self._module = name, module
        self._held: Mapping[str, object] = module.state_dict(keep_vars=True)

    def tree(self) -> Mapping[str, object]:
        """The state dict, a tied tensor being one object under all of its names."""
        return self._held

    def target(self, path: str, size: torch.Size, dtype: torch.dtype) -> Tensor:
        """The tensor itself."""
        mine = self.tree()[path]
        if not isinstance(mine, Tensor) or mine.shape != size:
            found = list(mine.shape) if isinstance(mine, Tensor) else type(mine).__name__
            raise RunError(
                "SH0608",
                f"`{path}` is {list(size)} in the checkpoint, and {found} in `{self._name}`",
                help=ANOTHER,
            )
        return mine.detach()

    def check(self, names: Iterable[str]) -> None:
        """Raise SH0608 if the checkpoint has other names than the module."""
        saved, mine = set(names), set(self.tree())
        if saved == mine:
            return
        words = [("only in the checkpoint", saved - mine), ("only in the module", mine - saved)]
        said = "; ".join(f"{_some(which)} {where}" for where, which in words if which)
        raise RunError("SH0608", f"`{self._name}` is another model: {said}", help=ANOTHER)

    @torch.no_grad()
    def load(self, tree: Mapping[str, object]) -> None:
        """Load as any state dict, so that the module knows of it."""
        self._module.load_state_dict(dict(tree))


ANOTHER = "load it into the model that it was saved from"


def _some(names: set[str]) -> str:
    listed = sorted(names)
    more = f" and {len(listed) - 3} more" if len(listed) > 3 else ""
    return ", ".join(f"`{name}`" for name in listed[:3]) + more


class OfOptimizer:
    """An optimizer, its states by the names of parameters."""

    def __init__(self, name: str, optimizer: Optimizer, names: Mapping[Tensor, str]) -> None:
        self._states = NamedStates(name, optimizer, names)

    def tree(self) -> Mapping[str, object]:
        """States by name, and groups that list names."""
        return self._states.tree()

    def target(self, path: str, size: torch.Size, dtype: torch.dtype) -> Tensor:
        """New memory, that lies as the optimizer would lay it."""
        return self._states.empty(path, size, dtype)

    def load(self, tree: Mapping[str, object]) -> None:
        """Give every parameter its states."""
        self._states.load(tree)


class OfOthers:
    """Something with a state dict."""

    def __init__(self, part: Stateful) -> None:
        self._part = part

    @cached_property
    def _held(self) -> Mapping[str, object]:
        found = self._part.state_dict()
        if not isinstance(found, Mapping):
            raise RunError(
                "SH0663",
                f"the `state_dict` of a `{type(self._part).__name__}` gives a"
                f" `{type(found).__name__}`",
                help="let it give a dict",
            )
        return found

    def tree(self) -> Mapping[str, object]:
        """The state dict."""
        return self._held

    def target(self, path: str, size: torch.Size, dtype: torch.dtype) -> Tensor:
        """New memory, that lies as the tensor which is there now, or whole."""
        mine = _at(self.tree(), path)
        if isinstance(mine, Tensor) and mine.shape == size:
            return torch.empty_like(mine, dtype=dtype)
        return torch.empty(size, dtype=dtype)

    def load(self, tree: Mapping[str, object]) -> None:
        """Load the state dict."""
        self._part.load_state_dict(dict(tree))


def _at(tree: object, path: str) -> object:
    """What stands at a dotted path of a tree; None if nothing does."""
    if not path or not isinstance(tree, Mapping | list | tuple):
        return tree if not path else None
    pairs = tree.items() if isinstance(tree, Mapping) else enumerate(tree)
    for key, value in pairs:
        rest = path.removeprefix(str(key))
        if rest != path and (not rest or rest[0] == "."):
            found = _at(value, rest[1:])
            if found is not None:
                return found
    return None
