"""An entry of a run's state that two functions save and load."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


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
