"""How far the losses of a run may lie from those of the plain model on one process."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from shardlang.compiler.driver import Compiled
from shardlang.ir.node import info
from shardlang.rules.registry import is_random
from shardlang.rules.streams import stream_key
from shardlang.runtime.errors import RunError
from shardlang.runtime.trainer.records import Record
from shardlang.runtime.trainer.typical import median

TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""By the narrowest type that the program computes in: of the largest loss of the reference."""


@dataclass(frozen=True, slots=True)
class Compared:
    """The losses of a run beside those of the reference.

    Attributes:
        reference: the steps of the plain model.
        pairs: step, loss of the run and loss of the reference, where both have one.
        tolerance: the largest difference that is allowed; None where other numbers are drawn.
        parted: the step that one of them alone has skipped; later ones are not compared.
    """

    reference: Sequence[Record]
    pairs: Sequence[tuple[int, float, float]]
    tolerance: float | None
    parted: int | None = None

    @property
    def worst(self) -> tuple[int, float, float] | None:
        """The pair that differs most; one of which one loss alone is finite, before all others."""
        return max(self.pairs, key=lambda pair: _difference(*pair[1:]), default=None)

    def document(self) -> dict[str, object]:
        """What the summary says of it."""
        most = 0.0 if self.worst is None else _difference(*self.worst[1:])
        return {
            "losses": [one.loss if not one.not_finite else None for one in self.reference],
            "max_difference": most if math.isfinite(most) else None,
            "tolerance": self.tolerance,
            "step_s": median([one.step_s for one in self.reference]),
            **({} if self.parted is None else {"parted": self.parted}),
        }

    def fault(self) -> RunError | None:
        """The error of a run that is not the plain model's."""
        if self.worst is None or self.tolerance is None:
            return None
        step, mine, theirs = self.worst
        found = _difference(mine, theirs)
        if found <= self.tolerance:
            return None
        return RunError(
            "SH0632",
            f"in step {step} the loss is {mine:.7g} and that of the reference {theirs:.7g}: the"
            f" difference is {found:.2g}, and {self.tolerance:.2g} is allowed",
            help="look with `shardlang verify` for what differs; over many steps rounding grows, so"
            " compare a few",
        )


def compare(compiled: Compiled, records: Sequence[Record], plain: Sequence[Record]) -> Compared:
    """Compare step by step those that the run has taken: after a resume, not the first ones.

    With a factor of the loss that follows the gradients, one of the two may skip a step that the
    other takes, since they add up in another order. From then on they train on other weights.
    """
    taken = {one.step: one for one in records}
    both = [(taken[one.step], one) for one in plain if one.step in taken]
    parted = None
    if compiled.program.step.precision.loss_scale is not None:
        parted = next((a.step for a, b in both if a.skipped != b.skipped), None)
    both = [(a, b) for a, b in both if parted is None or a.step <= parted]
    pairs = [(a.step, a.loss, b.loss) for a, b in both if a.loss is not None and b.loss is not None]
    largest = max((abs(x) for *_, x in pairs if math.isfinite(x)), default=0.0)
    tolerance = None if _draws_apart(compiled) else relative_tolerance(compiled) * largest
    return Compared(plain, pairs, tolerance, parted)


def _draws_apart(compiled: Compiled) -> bool:
    """Whether devices or microbatches draw their parts of values by themselves."""
    if any(node.target is stream_key for node in compiled.program.graph.nodes):
        return True
    drawn = any(is_random(node) for node in compiled.captured.graph.nodes)
    return drawn and compiled.spec.random == "fast" and compiled.spec.accumulate is not None


def relative_tolerance(compiled: Compiled) -> float:
    """The tolerance of the narrowest type that a program computes in."""
    widest = max(TOLERANCES.values())
    return max((TOLERANCES.get(x, widest) for x in _types(compiled)), default=widest)


def _types(compiled: Compiled) -> Iterator[torch.dtype]:
    for node in compiled.program.graph.nodes:
        value = info(node).value if node.op != "output" else None
        if isinstance(value, Tensor) and value.dtype.is_floating_point:
            yield value.dtype


def _difference(mine: float, theirs: float) -> float:
    """Infinite where one of them alone is finite; none where neither is."""
    if math.isfinite(mine) and math.isfinite(theirs):
        return abs(mine - theirs)
    return math.inf if math.isfinite(mine) or math.isfinite(theirs) else 0.0
