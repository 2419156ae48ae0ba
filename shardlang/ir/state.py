"""The states of a value along one mesh axis."""

from __future__ import annotations

from enum import Enum


class State(str, Enum):
    """What every device in a row along an axis holds of a value."""

    SHARDED = "S"
    """Its shard."""
    PARTIAL = "P"
    """A summand of the value; the gradient is the whole one."""
    INVARIANT = "I"
    """The whole value, and the whole gradient."""
    REPLICATED = "R"
    """The whole value, and a summand of the gradient."""

    __str__ = str.__str__

    @property
    def whole(self) -> bool:
        """Whether every device holds the whole value."""
        return self in (State.INVARIANT, State.REPLICATED)

    @property
    def dual(self) -> State:
        """The state of the gradient of a value in this state, as `Layout.dual` has it."""
        return _DUALS[self]


_DUALS = {
    State.SHARDED: State.SHARDED,
    State.INVARIANT: State.INVARIANT,
    State.PARTIAL: State.REPLICATED,
    State.REPLICATED: State.PARTIAL,
}
