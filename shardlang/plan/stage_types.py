"""What a pipeline costs, as frozen records: its stages, its ranks, and what goes between them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum

from shardlang.cost.timeline import Timeline
from shardlang.ir.pipeline.action import Work
from shardlang.ir.pipeline.schedule import PipelineSchedule
from shardlang.plan.moments import Memory, Phase


class Sent(str, Enum):
    """What goes from one stage to another."""

    VALUE = "value"
    GRADIENT = "gradient"
    PARAMETER = "parameter"
    """The value of a tied one, at the beginning of a step."""
    PARAMETER_GRADIENT = "gradient of a parameter"
    """The summed gradient of a tied one, at the end of a step."""

    __str__ = str.__str__


@dataclass(frozen=True, slots=True)
class TransferRow:
    """What a stage sends to another that lies on another rank.

    Attributes:
        name: of the value, or of the value whose gradient it is.
        module: that makes the value or holds the tensor; empty for the model itself.
        source: the stage that sends; `target` is the one that receives.
        count: transfers in a step.
        bytes: of one transfer, from the device with the largest shard.
    """

    what: Sent
    name: str
    source: int
    target: int
    phase: Phase
    count: int
    bytes: int
    module: str = ""

    @property
    def step_bytes(self) -> int:
        """Bytes of all transfers of a step."""
        return self.count * self.bytes

    def to_json(self) -> dict[str, object]:
        """The row of the plan document."""
        return {
            "what": self.what,
            "name": self.name,
            "module": self.module,
            "from_stage": self.source,
            "to_stage": self.target,
            "phase": self.phase,
            "count": self.count,
            "bytes": self.bytes,
            "step_bytes": self.step_bytes,
        }


@dataclass(frozen=True, slots=True)
class StageRow:
    """One stage, on the device that holds the most of it.

    Attributes:
        modules: the outermost modules of which the stage computes all.
        parameters: elements of its parameters on a device, as they lie at rest.
        flops: operations of the products in each of its actions, for one microbatch.
        seconds: how long each of them takes; None where the spec states no peaks.
    """

    stage: int
    rank: int
    modules: tuple[str, ...]
    parameters: int
    params_bytes: int
    flops: Mapping[Work, int]
    seconds: Mapping[Work, float] | None = None

    def to_json(self) -> dict[str, object]:
        """The `stages` entry of the plan document, without what is known of its rank."""
        return {
            "stage": self.stage,
            "rank": self.rank,
            "modules": list(self.modules),
            "parameters": self.parameters,
            "params_bytes": self.params_bytes,
            "forward_flops": self.flops[Work.FORWARD],
            "backward_flops": self.flops[Work.BACKWARD],
            "forward_s": self.seconds[Work.FORWARD] if self.seconds else None,
            "backward_s": self.seconds[Work.BACKWARD] if self.seconds else None,
        }


@dataclass(frozen=True, slots=True)
class Bubble:
    """Time in which ranks wait, as a part of the time in which they compute.

    Attributes:
        predicted: from the operations of the actions, or from the seconds that they and the
            transfers take.
        formula: of a schedule for which one is known, where all stages take the same time.
        text: the formula in words; what it does not say follows.
    """

    predicted: float
    formula: float | None
    text: str

    def to_json(self) -> dict[str, object]:
        """The `bubble` entry of the plan document."""
        return {"predicted": self.predicted, "formula": self.formula, "text": self.text}


@dataclass(frozen=True, slots=True)
class PipelinePlan:
    """The stages of a model along a mesh axis.

    Attributes:
        name: of the schedule.
        in_flight: of every rank, the most microbatches whose activations lie there, each counted
            once for every stage of the rank.
        stages_of: of a tensor, by its name, the stages that hold or make it.
        timeline: when each action begins and ends.
        unit: of the timeline: `s` where the spec states the peaks of a device, else `flops`.
        without_link: axes over which something is sent, and of which no link is stated: it takes
            no time.
        measure: the memory of every rank.
    """

    axis: str
    name: str
    schedule: PipelineSchedule
    stages: tuple[StageRow, ...]
    transfers: tuple[TransferRow, ...]
    in_flight: tuple[int, ...]
    stages_of: Mapping[str, tuple[int, ...]] = field(repr=False)
    timeline: Timeline = field(repr=False)
    bubble: Bubble
    measure: Callable[[], tuple[Memory, ...]] = field(compare=False, repr=False)
    unit: str = "flops"
    without_link: tuple[str, ...] = ()

    @property
    def memories(self) -> tuple[Memory, ...]:
        """The memory of every rank; it is worked out when it is first asked for."""
        return self.measure()

    def sent_by(self, rank: int) -> tuple[TransferRow, ...]:
        """What a rank sends to others."""
        rank_of = self.schedule.rank_of()
        return tuple(row for row in self.transfers if rank_of[row.source] == rank)

    def first_of(self, names: Iterable[str]) -> int:
        """The first stage of some tensors, by name, which holds or makes one of them."""
        return min(self.stages_of[name][0] for name in names)

    def by_rank(self, params: Iterable[str]) -> list[list[str]]:
        """Some parameters, by the rank on which they lie between steps."""
        found, rank_of = [list[str]() for _ in self.schedule.ranks], self.schedule.rank_of()
        for name in params:
            if name in self.stages_of:
                found[rank_of[self.first_of([name])]].append(name)
        return found

    def stages_json(self) -> list[dict[str, object]]:
        """The `stages` entry of the plan document."""
        return [row.to_json() | self._of_rank(row.rank) for row in self.stages]

    def _of_rank(self, rank: int) -> dict[str, object]:
        memory = self.memories[rank]
        return {
            "peak_bytes": memory.peak_bytes,
            "in_flight": self.in_flight[rank],
            "busy": self.timeline.busy(rank) / (self.timeline.makespan or 1),
        }
