"""The states of an optimizer by the names of its parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.optim import Optimizer

from shardlang.runtime.errors import RunError
from shardlang.runtime.optim import ShardedOptimizer
from shardlang.runtime.sharding import Sharding
from shardlang.runtime.tensor import Sharded, sharded

STATE, GROUPS, PARAMS, KIND = "state", "groups", "params", "kind"


class NamedStates:
    """An optimizer's state dict, keyed by names."""

    def __init__(self, entry: str, optimizer: Optimizer, names: Mapping[Tensor, str]) -> None:
        self._entry, self._optimizer = entry, optimizer
        self._params = {name: param for param, name in names.items()}
        self._names = names

    def _by_group(self) -> list[list[str]]:
        """The names of the parameters of each group."""
        return [
            [self._names[param] for param in group[PARAMS]]
            for group in self._optimizer.param_groups
        ]

    def tree(self) -> Mapping[str, object]:
        """`state` by name, and `groups` whose `params` are names."""
        given = self._optimizer.state_dict()
        names = self._by_group()
        ids = [number for group in given["param_groups"] for number in group[PARAMS]]
        by_id = dict(zip(ids, (name for group in names for name in group), strict=True))
        groups = [
            {**group, PARAMS: listed}
            for group, listed in zip(given["param_groups"], names, strict=True)
        ]
        states = {by_id[number]: states for number, states in given["state"].items()}
        return {KIND: self._kind, STATE: states, GROUPS: groups}

    @property
    def _kind(self) -> str:
        """The class of the optimizer that updates."""
        made = self._optimizer
        return type(made.inner if isinstance(made, ShardedOptimizer) else made).__name__

    def empty(self, path: str, size: torch.Size, dtype: torch.dtype) -> Tensor:
        """Memory for a state, by its path in the tree.

        A state of the parameter's shape lies as the optimizer lays it; any other is whole.
        """
        param = self._param_at(path)
        if param is None:
            return torch.empty(size, dtype=dtype)
        if param.shape != size or not param.dim():
            return torch.empty(size, dtype=dtype, device=param.device)
        if not isinstance(param, Sharded):
            return torch.empty_like(param, dtype=dtype, requires_grad=False)
        lies = _lies(self._optimizer, param)
        shape = lies.layout.local_shape(lies.groups.coord)
        return sharded(torch.empty(shape, dtype=dtype, device=lies.groups.device), lies)

    def _param_at(self, path: str) -> Tensor | None:
        """The parameter whose state a path names: the longest name that it begins with."""
        words = path.split(".")[1:]
        names = (".".join(words[:count]) for count in range(len(words) - 1, 0, -1))
        return next((self._params[name] for name in names if name in self._params), None)

    def load(self, tree: Mapping[str, object]) -> None:
        """Load states and settings.

        Raises:
            RunError: SH0608, the saved optimizer trains other parameters, or in other groups.
        """
        states, groups = tree[STATE], tree[GROUPS]
        assert isinstance(states, Mapping) and isinstance(groups, Sequence)
        if tree[KIND] != self._kind:
            raise self._another(f"it was `{tree[KIND]}`, and is `{self._kind}`")
        saved = [list(group[PARAMS]) for group in groups]
        self._check(saved)
        numbers = self._numbers()
        self._optimizer.load_state_dict(
            {
                STATE: {numbers[name]: dict(found) for name, found in states.items()},
                "param_groups": [self._group(groups, saved, names) for names in self._by_group()],
            }
        )

    def _numbers(self) -> dict[str, int]:
        """The numbers by which the optimizer's own state dict names the parameters."""
        groups = self._optimizer.state_dict()["param_groups"]
        return {
            name: number
            for group, names in zip(groups, self._by_group(), strict=True)
            for number, name in zip(group[PARAMS], names, strict=True)
        }

    def _group(
        self, groups: Sequence[Mapping[str, object]], saved: list[list[str]], names: list[str]
    ) -> dict[str, object]:
        """The saved settings of the group of some names, with the optimizer's own numbers."""
        found = next(
            g for g, listed in zip(groups, saved, strict=True) if set(listed) == set(names)
        )
        numbers = self._numbers()
        return {**found, PARAMS: [numbers[name] for name in names]}

    def _check(self, saved: list[list[str]]) -> None:
        """The groups must be the same sets of names."""
        mine = self._by_group()
        if sorted(map(sorted, saved)) == sorted(map(sorted, mine)):
            return
        before, now = (sorted(name for group in x for name in group) for x in (saved, mine))
        if before == now:
            what = f"its {len(before)} parameters are in other groups"
        else:
            differ = sorted(set(before) ^ set(now))
            where = "the checkpoint" if differ[0] in before else "this run"
            what = f"`{differ[0]}` is trained in {where} alone"
        raise self._another(what)

    def _another(self, what: str) -> RunError:
        return RunError(
            "SH0608",
            f"`{self._entry}` is another optimizer than the checkpoint's: {what}",
            help="make the optimizer as it was when the checkpoint was saved",
        )


def _lies(optimizer: Optimizer, param: Sharded) -> Sharding:
    """How the states of a parameter lie."""
    if isinstance(optimizer, ShardedOptimizer):
        return optimizer.lies(param)
    return param.gradient or param.sharding
