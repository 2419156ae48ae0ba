"""What differs between two plans."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from shardlang.plan.busiest import sent
from shardlang.plan.document import plan_document
from shardlang.plan.moments import Phase
from shardlang.plan.totals import Total
from shardlang.plan.transfer_calls import transfer_calls
from shardlang.plan.types import CollectiveRow, Plan, TensorRow


@dataclass(frozen=True, slots=True)
class TensorChange:
    """A tensor that lies differently; None where a plan does not have it."""

    name: str
    kind: str
    before: TensorRow | None
    after: TensorRow | None


@dataclass(frozen=True, slots=True)
class CallsChange:
    """Calls of one op, over the same axes, in one phase and module, that differ.

    Those of all stages of a pipeline are taken together.
    """

    op: str
    axes: tuple[str, ...]
    phase: Phase
    module: str
    before: Total
    after: Total

    def to_json(self) -> dict[str, object]:
        """The entry of the plan document."""
        return {
            "op": self.op,
            "axes": list(self.axes),
            "phase": self.phase,
            "module": self.module,
            "before": {"count": self.before.count, "bytes": self.before.bytes},
            "after": {"count": self.after.count, "bytes": self.after.bytes},
        }


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two plans and all that differs."""

    before: Plan
    after: Plan
    tensors: tuple[TensorChange, ...]
    calls: tuple[CallsChange, ...]
    transfers: tuple[CallsChange, ...]

    @property
    def sent_bytes(self) -> int:
        """Bytes that the busiest device sends more in the second plan, transfers included."""
        return sent(self.after).bytes - sent(self.before).bytes

    @property
    def memory_bytes(self) -> int:
        """Bytes of memory that the fullest device needs more in the second plan."""
        return self.after.memory.peak_bytes - self.before.memory.peak_bytes

    @property
    def same(self) -> bool:
        """Whether nothing differs."""
        rows = self.tensors or self.calls or self.transfers
        return not (rows or self.sent_bytes or self.memory_bytes or self._meshes_differ())

    def _meshes_differ(self) -> bool:
        return self.before.mesh.whole != self.after.mesh.whole


def compare(before: Plan, after: Plan) -> Comparison:
    """Compare two plans, the second against the first."""
    return Comparison(
        before,
        after,
        tuple(_tensor_changes(before, after)),
        tuple(_calls_changes(before.collectives, after.collectives)),
        tuple(_calls_changes(transfer_calls(before), transfer_calls(after))),
    )


def _tensor_changes(before: Plan, after: Plan) -> Iterator[TensorChange]:
    old = {(row.kind, row.name): row for row in before.tensors}
    new = {(row.kind, row.name): row for row in after.tensors}
    for key in dict.fromkeys([*old, *new]):
        was, now = old.get(key), new.get(key)
        if was is None or now is None or was.type != now.type:
            yield TensorChange(key[1], key[0], was, now)


Key = tuple[str, tuple[str, ...], Phase, str]


def _by_place(rows: Iterable[CollectiveRow]) -> dict[Key, Total]:
    found: dict[Key, Total] = {}
    for row in rows:
        key = (row.op, row.axes, row.phase, row.module)
        found[key] = found.get(key, Total()) + Total(row.count, row.bytes)
    return found


def _calls_changes(
    before: Iterable[CollectiveRow], after: Iterable[CollectiveRow]
) -> Iterator[CallsChange]:
    old, new = _by_place(before), _by_place(after)
    for key in dict.fromkeys([*old, *new]):
        was, now = old.get(key, Total()), new.get(key, Total())
        if was != now:
            yield CallsChange(*key, was, now)


def comparison_document(comparison: Comparison, spec: str) -> dict[str, object]:
    """The `against` entry of the plan document: the plan that `spec` gives, and what differs."""
    other = plan_document(comparison.before)
    return {
        "spec": spec,
        "mesh": other["mesh"],
        "devices": other["devices"],
        "totals": other["totals"],
        "memory": other["memory"],
        "tensors": [
            {
                "name": change.name,
                "kind": change.kind,
                "before": change.before.to_json() if change.before else None,
                "after": change.after.to_json() if change.after else None,
            }
            for change in comparison.tensors
        ],
        "collectives": [change.to_json() for change in comparison.calls],
        "transfers": [change.to_json() for change in comparison.transfers],
        "sent_bytes_more": comparison.sent_bytes,
        "memory_bytes_more": comparison.memory_bytes,
    }
