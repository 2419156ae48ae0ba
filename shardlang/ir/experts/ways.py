"""The ways to bring rows and their experts together, where the same axes split both."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from shardlang.ir.mesh import Axis


class Way(str, Enum):
    """One way to bring every row and the matrix of its expert to one device."""

    GATHER_EXPERTS = "gather experts"
    ROUTE_ROWS = "route rows"
    GATHER_ROWS = "gather rows"

    @property
    def meaning(self) -> str:
        """What moves."""
        return _MEANING[self]

    __str__ = str.__str__


_MEANING = {
    Way.GATHER_EXPERTS: "every device gets all experts",
    Way.ROUTE_ROWS: "every row goes to the device that has its expert, and its result comes back",
    Way.GATHER_ROWS: "every device gets all rows, and the results are added up",
}


@dataclass(frozen=True, slots=True)
class Ways:
    """What each way of one region of experts would move, in bytes per optimizer step.

    Attributes:
        ops: names of the products.
        module: the module that has them.
        axes: the axes that split both the rows and the experts.
        ways: the ways and their bytes.
        taken: the cheapest.
        closed: why a way is not open.
    """

    ops: tuple[str, ...]
    module: str
    axes: tuple[Axis, ...]
    ways: dict[Way, float]
    taken: Way
    closed: dict[Way, str]
