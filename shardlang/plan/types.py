"""What a program costs, as frozen records: its tensors and its collectives."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import torch

from shardlang.cost.held import local_bytes
from shardlang.ir.collective import COMMUNICATING
from shardlang.ir.layout import Layout
from shardlang.ir.mesh import Mesh
from shardlang.ir.printed_type import dtype_name, printed_type
from shardlang.plan.groups import ParamGroup
from shardlang.plan.moments import Memory, Phase
from shardlang.plan.stage_types import PipelinePlan

OPS: tuple[str, ...] = ("all_gather", "all_reduce", "reduce_scatter", "all_to_all", "send_recv")

assert set(OPS) == set(COMMUNICATING.values())


@dataclass(frozen=True, slots=True)
class TensorRow:
    """One named tensor and the shard of it that a device holds.

    Attributes:
        kind: `param`, `buffer`, `input`, `value` or `output`.
        trainable: whether it gets a gradient and is updated.
        expected: whether its sizes are those of equal shares, and the data decides.
    """

    name: str
    kind: str
    dtype: torch.dtype
    layout: Layout
    trainable: bool = False
    expected: bool = False

    @property
    def type(self) -> str:
        """The printed type, `f32[8@dp, 128]`."""
        return printed_type(self.dtype, self.layout)

    @property
    def local_shape(self) -> tuple[int, ...]:
        """The shape of the largest shard, which the first device holds."""
        return self.layout.max_local_shape()

    @property
    def local_bytes(self) -> int:
        """Bytes of the largest shard."""
        return local_bytes(self.layout, self.dtype)

    def to_json(self) -> dict[str, object]:
        """The row of the plan document."""
        return {
            "name": self.name,
            "kind": self.kind,
            "dtype": dtype_name(self.dtype),
            "global_shape": list(self.layout.shape),
            "layout": str(self.layout),
            "local_shape": list(self.local_shape),
            "local_bytes": self.local_bytes,
            **({"expected": True} if self.expected else {}),
        }


@dataclass(frozen=True, slots=True)
class Value:
    """A tensor that a module reads or returns: the node that makes it, and how it lies.

    `expected` says that its rows are out on a route, and the sizes are those of equal shares.
    """

    node: str
    dtype: torch.dtype
    layout: Layout
    expected: bool = False


@dataclass(frozen=True, slots=True)
class CollectiveRow:
    """One collective of an optimizer step.

    Attributes:
        op: one of `OPS`; `transfer` where it stands for what a stage sends to another.
        axes: the mesh axes that its groups span.
        module: the module in which it is needed; empty for the model itself.
        tensors: what it moves.
        stage: the pipeline stage, None without a pipeline.
        count: calls per optimizer step.
        bytes: what the busiest device sends in all these calls, under ring algorithms.
        bound: what it must send at least for these changes of layout (`shardlang.plan.bounds`).
        reason: what made it necessary.
        node: the step's name in the program; empty for the norm of the gradients, and for what
            all stages of a pipeline get of one.
        full_gather: whether it gathers more than devices hold before and after.
        flight: the nodes of the step program behind which it starts and before which it is waited
            for; None where nothing is computed in between.
    """

    op: str
    axes: tuple[str, ...]
    phase: Phase
    module: str
    tensors: tuple[str, ...]
    count: int
    bytes: int
    bound: int
    reason: str
    stage: int | None = None
    node: str = ""
    full_gather: bool = False
    flight: tuple[str, str] | None = None

    def to_json(self) -> dict[str, object]:
        """The row of the plan document."""
        return {
            "op": self.op,
            "axes": list(self.axes),
            "phase": self.phase,
            "module": self.module,
            "tensors": list(self.tensors),
            "stage": self.stage,
            "count": self.count,
            "bytes": self.bytes,
            "bound": self.bound,
            "reason": self.reason,
            "node": self.node,
            "full_gather": self.full_gather,
            "starts_after": self.flight[0] if self.flight else None,
            "waits_before": self.flight[1] if self.flight else None,
        }


@dataclass(frozen=True, slots=True)
class Stretch:
    """Rows of a plan that stand together, and how often a step makes their calls in turn."""

    first: int
    end: int
    times: int

    def to_json(self) -> dict[str, int]:
        """The entry of the plan document."""
        return {"first": self.first, "end": self.end, "times": self.times}


@dataclass(frozen=True, slots=True)
class Recomputed:
    """What `recompute` does to a step, on the first device.

    Attributes:
        again: by name, the values that are computed again.
        flops: operations of the products among them, for all microbatches.
        saved_bytes: bytes that the forward of a microbatch does not keep for its backward because
            of it.
        microbatches: of the step.
    """

    again: Mapping[str, str]
    flops: int = 0
    saved_bytes: int = 0
    microbatches: int = 1

    def to_json(self) -> dict[str, object]:
        """The entry of the plan document."""
        return {"ops": len(self.again), "flops": self.flops, "saved_bytes": self.saved_bytes}


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that one program moves and holds in one optimizer step.

    Attributes:
        collectives: in the order in which a device first makes their calls.
        stretches: the parts of a step, in order.
        groups: the parameters by the settings of their update, where these differ.
        pipeline: the stages of the model, where there are several.
    """

    mesh: Mesh
    data_axes: frozenset[str]
    tensors: tuple[TensorRow, ...]
    collectives: tuple[CollectiveRow, ...]
    measure: Callable[[], Memory] = field(compare=False, repr=False)
    recomputed: Recomputed | None = None
    stretches: tuple[Stretch, ...] = ()
    groups: tuple[ParamGroup, ...] = ()
    pipeline: PipelinePlan | None = None

    def calls(self) -> Iterator[CollectiveRow]:
        """The row of every call of a step, in the order in which a device makes them."""
        for part in self.stretches:
            for _ in range(part.times):
                yield from self.collectives[part.first : part.end]

    @property
    def memory(self) -> Memory:
        """The memory of the step; it is worked out when it is first asked for."""
        return self.measure()

    def tensor(self, name: str) -> TensorRow:
        """The tensor of that name. Raises KeyError."""
        for row in self.tensors:
            if row.name == name:
                return row
        raise KeyError(name)

    def select(
        self, op: str | None = None, phase: Phase | None = None, axis: str | None = None
    ) -> tuple[CollectiveRow, ...]:
        """The collectives of one op, in one phase, over a given axis; None means any."""
        return tuple(
            row
            for row in self.collectives
            if op in (None, row.op)
            and phase in (None, row.phase)
            and (axis is None or axis in row.axes)
        )
