"""Why an op is split over an axis as it is."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Reason(str, Enum):
    """What gave an op its layout along an axis; the value is what a graph's text says."""

    STATED = "stated"
    """The source is the place of the statement."""
    STORED = "stored"
    """The source is the name of the stored leaf."""
    CLAIMED = "claimed by a stated parameter"
    """The source is the parameter's node, as it is the node of all that follow."""
    FLOWS = "flows from"
    CHEAPEST = "cheapest"
    LOWERED = "lowered from"
    ROUTED = "has the rows of its experts"
    GATHERED = "has all rows of its experts"
    PASSES = "passes a partial sum on"

    __str__ = str.__str__


@dataclass(frozen=True, slots=True)
class Origin:
    """The reason why an op has an axis where it has it, and the node that it came from.

    Attributes:
        options: of the cheapest, from how many it was chosen.
    """

    reason: Reason
    source: str = ""
    options: int = 0

    @property
    def text(self) -> str:
        """`stored`, `cheapest of 3`."""
        return f"{self.reason} of {self.options}" if self.options else self.reason.value

    @staticmethod
    def read(text: str, source: str) -> Origin:
        """The origin of a printed `text`.

        Raises:
            ValueError: there is no such reason.
        """
        head, _, number = text.rpartition(" of ")
        if head == Reason.CHEAPEST and number.isdigit():
            return Origin(Reason.CHEAPEST, source, int(number))
        return Origin(Reason(text), source)
