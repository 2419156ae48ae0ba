"""What is known of one call beside how its dims may be split."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class OpKind(str, Enum):
    """What an op does, as far as something is decided or said by it."""

    PRODUCT = "product of matrices"
    GROUPED_PRODUCT = "product of rows with the matrices of their groups"
    CONVOLUTION = "convolution"
    ATTENTION = "attention"
    LOOKUP = "rows of a table"
    INDEX = "elements at tensors of indices"
    PAD = "its operand with numbers around it"
    LOSS = "loss of scores against classes"
    SOFTMAX = "scores that sum to one"
    GATE = "a number between zero and one for each element"
    CHOICE = "the largest elements"
    RUNNING = "running sums"
    OTHER = "anything else"

    __str__ = str.__str__


@dataclass(frozen=True, slots=True)
class Picks:
    """How an op picks one row (or matrix) of a table for every row of its results.

    With the table split, a device makes the rows that pick from its part, and zeros in all others.

    Attributes:
        table: the factor that numbers what is picked.
        chooser: the operand that says which; its dims number the rows, the leading ones of all
            results.
    """

    table: str
    chooser: int


@dataclass(frozen=True, slots=True)
class Traits:
    """What is known of one call.

    Attributes:
        name: the short name of the op: `linear` for `aten.linear.default`. A call that a device
            makes in its place keeps the name.
        memory: for each result the operand in whose memory it lies; None for memory of its own.
        moves: whether every element of every result is an element of its first operand, in another
            place, dtype or number at most.
        affine: sets of operands in which the op is jointly linear but for constant terms and
            rounding, which no derivative sees.
        keeps: the operands whose values its backward reads; None for what follows from `affine`.
        kept_results: the results whose values its backward reads.
        picks: how it picks rows of a table, if it does.
    """

    name: str = ""
    kind: OpKind = OpKind.OTHER
    memory: tuple[int | None, ...] = (None,)
    moves: bool = False
    affine: tuple[frozenset[int], ...] = ()
    keeps: frozenset[int] | None = None
    kept_results: frozenset[int] = frozenset()
    picks: Picks | None = None

    @property
    def is_view(self) -> bool:
        """Whether all results lie in the memory of operands."""
        return bool(self.memory) and None not in self.memory
