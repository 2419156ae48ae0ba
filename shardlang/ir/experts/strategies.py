"""The strategies that bring rows and their experts together, where the same axes split both."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from shardlang.ir.mesh import Axis


class Strategy(str, Enum):
    """How every row and the matrix of its expert come to one device."""

    GATHER_EXPERTS = "gather experts"
    ROUTE_ROWS = "route rows"
    GATHER_ROWS = "gather rows"

    @property
    def meaning(self) -> str:
        """What moves."""
        return _MEANING[self]

    __str__ = str.__str__


_MEANING = {
    Strategy.GATHER_EXPERTS: "every device gets all experts",
    Strategy.ROUTE_ROWS: (
        "every row goes to the device that has its expert, and its result comes back"
    ),
    Strategy.GATHER_ROWS: "every device gets all rows, and the results are added up",
}


@dataclass(frozen=True, slots=True)
class Strategies:
    """What each strategy for one region of experts would move, in bytes per optimizer step.

    Attributes:
        ops: names of the products.
        module: the module that has them.
        axes: the axes that split both the rows and the experts.
        bytes: what each strategy moves.
        taken: the cheapest.
        closed: why a strategy is not open.
    """

    ops: tuple[str, ...]
    module: str
    axes: tuple[Axis, ...]
    bytes: dict[Strategy, float]
    taken: Strategy
    closed: dict[Strategy, str]
