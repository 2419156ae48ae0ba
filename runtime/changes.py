"""What a loop does to parameters and optimizers between two calls, as the ranks compare it.

Every write to a parameter counts in the version of its shard. Optimizers write at every step, and
alike on ranks that step alike, so their writes are taken off; what remains was written by hand, or
loaded, and may differ between ranks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

from torch import Tensor
from torch.optim.optimizer import Optimizer

from shardlang.runtime.errors import RunError
from shardlang.runtime.tensor import Sharded


class Due:
    """Whether replicas are to be compared at a call; the same on all ranks.

    They are at the calls 1, 2, 4, 8 and so on, at every call after values were loaded, and after
    the changes by hand that have these numbers: whatever the loop does, the comparisons are few,
    and a difference is found by the time that the run is twice as long.
    """

    def __init__(self) -> None:
        self._calls = self._changes = 0
        self._open = False

    def at_call(self, changed: int) -> bool:
        """Count a call. `changed`: the greatest of all ranks' `Changes.since`."""
        self._calls += 1
        self._changes += changed == BY_HAND
        by_hand = changed == BY_HAND and _is_power_of_two(self._changes)
        self._open |= changed == LOADED or by_hand or _is_power_of_two(self._calls)
        return self._open

    def done(self) -> None:
        """The replicas were compared, and are alike."""
        self._open = False


BY_HAND, LOADED = 1, 2


def _is_power_of_two(number: int) -> bool:
    return number & (number - 1) == 0


class Changes:
    """The changes of a module's parameters since its last call, on this rank."""

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        """`tensors`: the parameters as they are now."""
        self._seen = self._now = _written(tensors)
        self._loaded = False

    def note_loaded(self) -> None:
        """Values were loaded."""
        self._loaded = True

    def since(self, tensors: Iterable[Tensor]) -> int:
        """0 for none since the last call, else `BY_HAND` or `LOADED`.

        `tensors`: the parameters as they are now.
        """
        self._now = _written(tensors)
        return LOADED if self._loaded else BY_HAND * (self._now != self._seen)

    def told(self) -> None:
        """The other ranks have learnt what `since` said."""
        self._seen, self._loaded = self._now, False


def _written(tensors: Iterable[Tensor]) -> int:
    return sum(x.written_by_hand for x in tensors if isinstance(x, Sharded))


def before_step(optimizer: Optimizer) -> None:
    """Take the writes of an optimizer's step off, and remember the step for `steps_since`."""
    params = list(_sharded(optimizer))
    if not getattr(optimizer, "splits_state", False):
        _refuse_whole_states(optimizer, params)
        _refuse_own_types(optimizer)
    for param in params:
        param.excused -= param.version
    if params:
        _STEPS[_words(optimizer)] += 1
        _Taken.count += 1


def _refuse_whole_states(optimizer: Optimizer, params: Iterable[Sharded]) -> None:
    if any(param.gradient is not None and param.grad is not None for param in params):
        name = type(optimizer).__name__
        raise RunError(
            "SH0642",
            f"the spec stores gradients or optimizer states split, and `{name}` would keep its"
            " states as the parameters lie",
            help="take the spec's optimizer: `optimizer = program.optimizer()`",
        )


_UPDATED = "_shardlang_updated"
"""The mark of a parameter that only the spec's own optimizer updates as the spec says."""


def mark_updated(param: Tensor, what: str) -> None:
    """Say what the spec states of the update of a parameter, in its own words."""
    param.__dict__[_UPDATED] = what


def _refuse_own_types(optimizer: Optimizer) -> None:
    params = [x for group in optimizer.param_groups for x in group["params"]]
    found = (x.__dict__.get(_UPDATED) for x in params if x.grad is not None)
    what = next((one for one in found if one is not None), None)
    if what is not None:
        name = type(optimizer).__name__
        raise RunError(
            "SH0642",
            f"the spec states `{what}`, and `{name}` would update parameters without it",
            help="take the spec's optimizer: `optimizer = program.optimizer()`",
        )


def after_step(optimizer: Optimizer) -> None:
    """The step is done."""
    for param in _sharded(optimizer):
        param.excused += param.version


def _sharded(optimizer: Optimizer) -> Iterator[Sharded]:
    groups: Sequence[Mapping[str, Iterable[object]]] = optimizer.param_groups
    return (x for group in groups for x in group["params"] if isinstance(x, Sharded))


class _Taken:
    """How many steps optimizers have taken on parameters of ours."""

    count = 0


def steps_taken() -> int:
    """How many steps optimizers have taken on sharded parameters, on this rank."""
    return _Taken.count


_STEPS: Counter[str] = Counter()
"""The steps of optimizers since the ranks last compared themselves, in words."""


def steps_since() -> tuple[str, ...]:
    """In words, the steps of optimizers on this rank since it was asked last."""
    found = tuple(f"{count} × a step of {words}" for words, count in _STEPS.items())
    _STEPS.clear()
    return found


def _words(optimizer: Optimizer) -> str:
    groups = (", ".join(_settings(group)) for group in optimizer.param_groups)
    return f"`{type(optimizer).__name__}` with {'; '.join(groups)}"


def _settings(group: Mapping[str, object]) -> Iterator[str]:
    for name, value in group.items():
        if isinstance(value, int | float | tuple) and not isinstance(value, bool):
            yield f"{name} = {value}"
