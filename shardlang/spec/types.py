"""The resolved form of a `.shard` file: every name looked up, every literal a value.

Nothing here knows the model yet; `shardlang.bind` joins a `Spec` to the names of a model.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, TypeAlias

from shardlang.grammar.diagnostics import NOWHERE, Span
from shardlang.grammar.patterns import Pattern
from shardlang.grammar.tree import Cut, OnNan, RandomMode, Side
from shardlang.ir.mesh import Mesh
from shardlang.ir.pipeline.schedule import PipelineSchedule
from shardlang.ir.step_options import NO_OPTIONS, StepOptions

Scalar: TypeAlias = int | float | str | bool
LiteralValue: TypeAlias = "Scalar | tuple[Scalar, ...]"
Arguments: TypeAlias = "tuple[tuple[str, LiteralValue], ...]"


@dataclass(frozen=True, slots=True)
class Axes:
    """A dim sharded over axes, major to minor; `blocks` as in `tp(3)` or `tp(64, 8, 8)`."""

    axes: tuple[str, ...]
    blocks: tuple[int, ...] | None = None
    span: Span = field(default=NOWHERE, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Whole:
    """`_`: a dim that stays whole."""

    span: Span = field(default=NOWHERE, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Open:
    """`?`: a dim that propagation decides."""

    span: Span = field(default=NOWHERE, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Rest:
    """`...`: the remaining dims, all open."""

    span: Span = field(default=NOWHERE, compare=False, repr=False)


LayoutEntry: TypeAlias = "Axes | Whole | Open | Rest"


@dataclass(frozen=True, slots=True)
class LayoutExpr:
    """A layout as written, with names expanded to mesh axes. At most one entry is `Rest`."""

    entries: tuple[LayoutEntry, ...]
    partial: tuple[str, ...] = ()
    span: Span = field(default=NOWHERE, compare=False, repr=False)

    @property
    def rank(self) -> int | None:
        """The number of dims, or None where `...` leaves it open."""
        if any(isinstance(entry, Rest) for entry in self.entries):
            return None
        return len(self.entries)

    def with_first_dim(self, rank: int) -> LayoutExpr:
        """The same layout of `rank` dims, whose first entry is that of the first dim alone."""
        if not self.entries or not isinstance(self.entries[0], Rest):
            return self
        first, *others = self.entries
        opened = () if len(others) == rank else (Open(first.span), first)
        return replace(self, entries=(*opened, *others))


@dataclass(frozen=True, slots=True)
class ModelRef:
    """Where the model comes from.

    Attributes:
        kind: `hf` for a Hugging Face config, `python` for a function in a file.
        path: absolute path of the config or the file.
        function: the function that builds a `python` model.
        arguments: the keyword arguments as written, `task` and `mode` included.
    """

    kind: Literal["hf", "python"]
    path: Path
    function: str | None = None
    arguments: Arguments = ()
    span: Span = field(default=NOWHERE, compare=False, repr=False)

    @property
    def kwargs(self) -> dict[str, LiteralValue]:
        """The keyword arguments by name."""
        return dict(self.arguments)


@dataclass(frozen=True, slots=True)
class InputDecl:
    """An input of the model: its type and layout. `below` bounds integers from above."""

    pattern: Pattern
    dtype: str
    shape: tuple[int, ...]
    below: int | None
    layout: LayoutExpr
    span: Span = field(default=NOWHERE, compare=False, repr=False)

    @property
    def name(self) -> str | None:
        """The input's name, or None where the pattern has wildcards."""
        return self.pattern.literal


@dataclass(frozen=True, slots=True)
class LayoutDecl:
    """The layout of the params, buffers or outputs that a pattern matches."""

    pattern: Pattern
    layout: LayoutExpr
    span: Span = field(default=NOWHERE, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class ValueDecl:
    """The layout of a tensor that modules read or return; an empty path names the only one."""

    pattern: Pattern
    side: Side
    path: tuple[str, ...]
    layout: LayoutExpr
    span: Span = field(default=NOWHERE, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class StoreDecl:
    """Sharding at rest; with `regather`, gathered again for the backward.

    Attributes:
        what: what is split: `value`, `gradients` or `optimizer`, each with what comes after it.
    """

    pattern: Pattern
    axes: tuple[str, ...]
    regather: bool = False
    what: str = "value"
    span: Span = field(default=NOWHERE, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class RecomputeDecl:
    """Modules all of which the backward computes again."""

    pattern: Pattern
    span: Span = field(default=NOWHERE, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class LossDecl:
    """The output that is the loss."""

    pattern: Pattern
    span: Span = field(default=NOWHERE, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class AccumulateDecl:
    """The number of microbatches of a step."""

    count: int
    span: Span = field(default=NOWHERE, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class SplitDecl:
    """`split ...`: which modules make a stage.

    Attributes:
        lists: module lists, whose modules are dealt out evenly, one list after the other.
        stages: the modules of each stage, where they are stated one by one.
        auto: whether the stages are those that are most alike.
    """

    lists: tuple[tuple[Pattern, Span], ...] = ()
    stages: tuple[tuple[tuple[Pattern, Span], ...], ...] = ()
    auto: bool = False
    span: Span = field(default=NOWHERE, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class PipelineDecl:
    """`pipeline AXIS { ... }`: the stages of the model along a mesh axis, and their schedule.

    The number of microbatches stands in `Spec.accumulate`.

    Attributes:
        axis: its devices compute the stages.
        schedule: its name, one of `ir.pipeline.kinds`, or the path of a file as written.
        virtual: the stages of each device under a schedule with a name.
        actions: the schedule of a file.
        schedule_span: of the schedule, or of the whole statement where none is stated.
    """

    axis: str
    split: SplitDecl
    schedule: str = "1f1b"
    virtual: int = 1
    actions: PipelineSchedule | None = None
    span: Span = field(default=NOWHERE, compare=False, repr=False)
    schedule_span: Span = field(default=NOWHERE, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class CheckpointDecl:
    """When a run saves its state, and what it does where the loss is not finite.

    Attributes:
        every: so many steps.
        keep: how many of the last checkpoints stay; None for all.
        keep_every: those whose step it divides stay too.
        on_nan: `stop`, `skip` the batch, or `rollback` to the last checkpoint.
    """

    every: int
    keep: int | None = None
    keep_every: int | None = None
    on_nan: OnNan = "stop"
    span: Span = field(default=NOWHERE, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class DataDecl:
    """Where batches come from.

    Attributes:
        cut: how tokens are cut into samples; None for windows that know of no documents.
        validation: which part of the samples is kept for evaluation.
        drop_last: whether the rest of an epoch that fills no batch is left out.
        split: the part of a data set of several; None where none is stated.
        ids, labels: the inputs that are the tokens, and the labels.
    """

    path: Path
    cut: Cut | None = None
    validation: float = 0.0
    shuffle: bool = True
    drop_last: bool = False
    split: str | None = None
    ids: str = "input_ids"
    labels: str = "labels"
    span: Span = field(default=NOWHERE, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class OptimizerDecl:
    """An optimizer and its arguments; see `shardlang.spec.optimizers` for the known ones."""

    name: str
    arguments: Arguments = ()
    span: Span = field(default=NOWHERE, compare=False, repr=False)

    @property
    def kwargs(self) -> dict[str, LiteralValue]:
        """The arguments by name."""
        return dict(self.arguments)


@dataclass(frozen=True, slots=True)
class GroupDecl:
    """Parameters that some patterns match, and the optimizer's arguments for them."""

    patterns: tuple[tuple[Pattern, Span], ...]
    arguments: Arguments
    span: Span = field(default=NOWHERE, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class PhaseDecl:
    """A phase of the learning rate, or a scheduler of torch; see `shardlang.ir.schedules`."""

    name: str
    arguments: Arguments = ()
    span: Span = field(default=NOWHERE, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class LearningRateDecl:
    """The phases of the learning rate, one after the other."""

    phases: tuple[PhaseDecl, ...]
    span: Span = field(default=NOWHERE, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class EvaluateDecl:
    """An evaluation every so many steps, over so many batches.

    Attributes:
        source: the file of its data, where it is not that of the run.
    """

    every: int
    batches: int
    source: Path | None = None
    span: Span = field(default=NOWHERE, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class SelectExpr:
    """Some collectives of a plan; None means any."""

    op: str
    phase: str | None = None
    axes: tuple[str, ...] | None = None
    pattern: Pattern | None = None


@dataclass(frozen=True, slots=True)
class TimesBound:
    """`1.1 * bound`: what any program must send, so many times."""

    factor: int | float


@dataclass(frozen=True, slots=True)
class ExpectCount:
    """`[bytes] select == bound`."""

    measure: Literal["count", "bytes"]
    select: SelectExpr
    comparison: str
    bound: int | TimesBound
    span: Span = field(default=NOWHERE, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class ExpectForbid:
    """`forbid select`."""

    select: SelectExpr
    span: Span = field(default=NOWHERE, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class ExpectLayout:
    """`layout "name" [layout]`."""

    pattern: Pattern
    layout: LayoutExpr
    span: Span = field(default=NOWHERE, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class ExpectLocal:
    """`local "name" [4, ?]`: the largest shard of a tensor on a device; None means any size."""

    pattern: Pattern
    sizes: tuple[int | None, ...]
    span: Span = field(default=NOWHERE, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class ExpectLocalBytes:
    """`local bytes "name" <= bound`."""

    pattern: Pattern
    comparison: str
    bound: int
    span: Span = field(default=NOWHERE, compare=False, repr=False)


Expectation: TypeAlias = (
    "ExpectCount | ExpectForbid | ExpectLayout | ExpectLocal | ExpectLocalBytes"
)


@dataclass(frozen=True, slots=True)
class TypeDecl:
    """A type that a spec states of something."""

    dtype: str
    span: Span = field(default=NOWHERE, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class LossScaleDecl:
    """The factor of the loss; None for one that follows what overflows."""

    factor: float | None
    span: Span = field(default=NOWHERE, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class PrecisionDecl:
    """`precision { ... }`: types beside those of the model; None where nothing is stated.

    Attributes:
        compute: to which wider parameters and inputs are cast.
        reduce: in which gradients of narrower parameters are reduced.
        master: of the master weights of narrower parameters.
        loss_scale: by what the loss is multiplied before the backward.
    """

    compute: TypeDecl | None = None
    reduce: TypeDecl | None = None
    master: TypeDecl | None = None
    loss_scale: LossScaleDecl | None = None


@dataclass(frozen=True, slots=True)
class PeakDecl:
    """How many operations of a floating-point type a device makes in a second at best."""

    dtype: str
    flops_per_s: float
    span: Span = field(default=NOWHERE, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Spec:
    """A whole spec. Of two statements about one tensor, the later in its tuple wins.

    Attributes:
        path: the file as given.
        sets: the `--set` values, by name.
        data_axes: axes declared `as data`, and those that shard the first dim of an input and are
            not declared `as model`.
        outputs: layouts of the model's results; an unstated one keeps the layout it has.
        data: where the batches of a run come from.
        groups: parameters that the optimizer updates by arguments of their own.
        accumulate: how many microbatches the batch of a step is cut into.
        pipeline: the stages of the model; the microbatches are then those of `accumulate`.
        precision: the types beside those of the model.
        checkpoint: when a run saves its state.
        peaks: what `cluster` states of a device, each type once.
        random: `exact`, what one device draws, or `fast`, a stream for each shard.
        step: the options of the passes on the step program that name nothing of the model.
        budget_span: where `recompute to` or `recompute selective` stands.
        recomputes: the modules that the backward computes again.
    """

    path: Path
    sets: tuple[tuple[str, Scalar], ...]
    mesh: Mesh
    data_axes: frozenset[str]
    model: ModelRef
    inputs: tuple[InputDecl, ...] = ()
    params: tuple[LayoutDecl, ...] = ()
    buffers: tuple[LayoutDecl, ...] = ()
    values: tuple[ValueDecl, ...] = ()
    outputs: tuple[LayoutDecl, ...] = ()
    loss: LossDecl | None = None
    data: DataDecl | None = None
    stores: tuple[StoreDecl, ...] = ()
    optimizer: OptimizerDecl | None = None
    groups: tuple[GroupDecl, ...] = ()
    learning_rate: LearningRateDecl | None = None
    evaluate: EvaluateDecl | None = None
    random: RandomMode = "exact"
    accumulate: AccumulateDecl | None = None
    pipeline: PipelineDecl | None = None
    precision: PrecisionDecl = PrecisionDecl()
    checkpoint: CheckpointDecl | None = None
    step: StepOptions = NO_OPTIONS
    peaks: tuple[PeakDecl, ...] = ()
    budget_span: Span | None = field(default=None, compare=False, repr=False)
    recomputes: tuple[RecomputeDecl, ...] = ()
    expects: tuple[Expectation, ...] = ()

    @property
    def set_values(self) -> dict[str, Scalar]:
        """The `--set` values as the JSON documents record them."""
        return dict(self.sets)
