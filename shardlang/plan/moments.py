"""The memory of a step on one device: its moments, and what lies there at each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum

from shardlang.cost.composition import Kind


class Phase(str, Enum):
    """The parts of a training step."""

    FORWARD = "forward"
    BACKWARD = "backward"
    UPDATE = "update"

    __str__ = str.__str__


@dataclass(frozen=True, slots=True)
class Moment:
    """A statement of a step, and what lies in memory when it holds the most.

    Attributes:
        module: the module to which it belongs; empty for the model itself.
        node: its name in the program; empty behind the forward and behind the backward.
        held: bytes by kind, all kinds.
    """

    phase: Phase
    module: str
    node: str
    held: Mapping[Kind, int]

    @property
    def bytes(self) -> int:
        """All that lies there."""
        return sum(self.held.values())


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes on the fullest device.

    Attributes:
        params_bytes: of the parameters at rest; so are the bytes of buffers.
        gradients_bytes: of all gradients together, when the backward is done.
        optimizer_bytes: of the state that the optimizer keeps.
        optimizer_name: the optimizer whose state is counted.
        peak_bytes: the most that lies there at once.
        measure: gives the moments.
    """

    params_bytes: int
    buffers_bytes: int
    gradients_bytes: int
    optimizer_bytes: int
    optimizer_name: str
    peak_bytes: int
    measure: Callable[[], tuple[Moment, ...]] = field(compare=False, repr=False)

    @property
    def moments(self) -> tuple[Moment, ...]:
        """One for each statement of the step, in order."""
        return self.measure()

    @property
    def peak(self) -> Moment:
        """The first moment at which the most lies there."""
        return max(self.moments, key=lambda moment: moment.bytes)

    def to_json(self) -> dict[str, object]:
        """The `memory` entry of the plan document."""
        peak = self.peak
        return {
            "peak_bytes": peak.bytes,
            "at": peak.module,
            "phase": peak.phase,
            "node": peak.node,
            "params_bytes": self.params_bytes,
            "buffers_bytes": self.buffers_bytes,
            "gradients_bytes": self.gradients_bytes,
            "optimizer": self.optimizer_name,
            "optimizer_bytes": self.optimizer_bytes,
            "at_peak": {kind.value: count for kind, count in peak.held.items()},
        }
