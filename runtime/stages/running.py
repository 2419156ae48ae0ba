"""What a step of a pipeline is, and what lies on this device while it runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from shardlang.ir.mesh import Axis
from shardlang.ir.pipeline.action import Action, Work
from shardlang.ir.pipeline.schedule import PipelineSchedule
from shardlang.ir.pipeline.staged import StagedStep
from shardlang.runtime.accumulate import RandomStates, add_up
from shardlang.runtime.stages.links import Shapes, Traffic
from shardlang.runtime.stages.part import Part

Leaves = Mapping[str, Tensor]
Parts = dict[int, dict[Work, Part]]
"""The code of the actions of each stage of this device."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A step of several stages, and the order of its actions.

    Attributes:
        axis: its coordinate is the rank of the schedule.
        order: all actions, in an order in which they can be done one after the other.
        shapes: of each microbatch, local shape and type of what is sent, by name.
    """

    step: StagedStep
    schedule: PipelineSchedule
    axis: Axis
    order: Sequence[Action]
    shapes: Sequence[Shapes]

    @property
    def forwards(self) -> Plan:
        """The forwards alone, as an evaluation runs them."""
        return replace(self, order=[a for a in self.order if a.work is Work.FORWARD])


Clock = Callable[[Action], AbstractContextManager[object]]
"""Around each action."""


@dataclass(slots=True)
class Running:
    """What lies on this device while a step runs.

    Attributes:
        leaves: of each microbatch, by name.
        values: of each stage and microbatch, by name.
        sums: of gradients.
        parts: of totals.
        drawn: the generators after a forward: every stage makes all draws of its microbatch.
    """

    traffic: Traffic
    leaves: Sequence[Leaves]
    loaded: Sequence[Parts]
    scale: float
    values: dict[tuple[int, int], dict[str, object]] = field(default_factory=dict)
    sums: dict[str, Tensor] = field(default_factory=dict)
    parts: dict[str, Tensor] = field(default_factory=dict)
    written: dict[str, Tensor] = field(default_factory=dict)
    drawn: RandomStates | None = None
    counts: Counter[str] = field(default_factory=Counter)

    def add(
        self, into: dict[str, Tensor], name: str, x: Tensor, wide: torch.dtype | None = None
    ) -> None:
        """Add a part of a total or of a gradient to those before it."""
        add_up(into, {name: x}, self.counts[name], wide)
        self.counts[name] += 1
