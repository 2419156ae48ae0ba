"""What one stage of a pipeline has and all need, once a step: a row of the plan for each value.

The values and the calls are those of a run (`runtime/stages/shared.py`).
"""

from __future__ import annotations

from collections.abc import Iterator

from shardlang.cost.held import local_bytes
from shardlang.cost.ring import sent_bytes
from shardlang.ir.mesh import Axis, joined
from shardlang.ir.pipeline.staged import StagedStep
from shardlang.plan.moments import Phase
from shardlang.plan.types import CollectiveRow
from shardlang.runtime.stages.shared import Lies, Round, sharing

_ADD = "the others add zeros"


class Shares:
    """The rows of what is sent round, by where they stand behind the last action."""

    def __init__(self, step: StagedStep, axis: Axis, when: str) -> None:
        self._round, self._tied = Round.of(step), step.tied
        self._axis, self._when = axis, when

    def for_loss(self) -> Iterator[CollectiveRow]:
        """Before the loss is made: of totals, which are no module's, and of parameters."""
        why = f"every stage makes the loss of a total that one stage has: {_ADD}"
        yield from self._rows(self._round.totals, Phase.FORWARD, why, owned=False)
        why = f"every stage makes the loss with `{{}}`, which one stage holds: {_ADD}"
        yield from self._rows(self._round.read, Phase.FORWARD, why)

    def of_buffers(self) -> Iterator[CollectiveRow]:
        """Behind the loss."""
        why = f"every stage holds the buffer `{{}}`, which one stage writes: {_ADD}"
        yield from self._rows(self._round.buffers, Phase.FORWARD, why)

    def of_gradients(self) -> Iterator[CollectiveRow]:
        """Behind the reductions of gradients."""
        why = f"every stage holds the number `{{}}`, whose gradient one stage makes: {_ADD}"
        yield from self._rows(self._round.scalars, Phase.BACKWARD, why)

    def _rows(
        self, lies: Lies, phase: Phase, why: str, owned: bool = True
    ) -> Iterator[CollectiveRow]:
        """One call for each value; at least its stage must send it once.

        Args:
            why: with a place for the name where it says it.
            owned: whether a module holds the values.
        """
        for name, (layout, dtype) in lies.items():
            call, name = sharing(layout, self._axis), self._tied.get(name, name)
            if call.sends:
                yield CollectiveRow(
                    op=call.op,
                    axes=tuple(axis.name for axis in joined(call.axes)),
                    phase=phase,
                    module=name.rpartition(".")[0] if owned else "",
                    tensors=(name,),
                    count=1,
                    bytes=sent_bytes(call, dtype.itemsize),
                    bound=local_bytes(layout, dtype),
                    reason=f"{why.format(name)}; {self._when}",
                )
