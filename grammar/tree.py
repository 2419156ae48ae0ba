"""The syntax tree: frozen nodes, one per statement, compared without their spans.

Comments and blank lines belong to the tree (`Trivia`), so that the formatter keeps
them. `parse(format_tree(tree))` is equal to `tree` for every tree.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from shardlang.grammar.leaves import (
    NO_TRIVIA,
    SIDES,
    Argument,
    AxesEntry,
    Entry,
    Ident,
    Item,
    Layout,
    ListValue,
    Node,
    Number,
    OpenEntry,
    Part,
    Product,
    Ref,
    RestEntry,
    Scalar,
    Selector,
    Side,
    Size,
    Text,
    Trivia,
    Value,
    WholeEntry,
)
from shardlang.grammar.pipeline import (
    Microbatches,
    Order,
    Pipeline,
    PipelineItem,
    Split,
    SplitAuto,
    Stage,
    Stages,
)

# fmt: off
__all__ = [
    "AXIS_ROLES",
    "CUTS",
    "NO_TRIVIA",
    "ON_NAN",
    "RANDOM_MODES",
    "SIDES",
    "TYPED",
    "Accumulate",
    "Argument",
    "AxesEntry",
    "AxisDecl",
    "AxisRole",
    "Block",
    "BlockItem",
    "Buffer",
    "Checkpoint",
    "Cluster",
    "Count",
    "Cut",
    "Data",
    "Dims",
    "DimsEntry",
    "Entry",
    "Evaluate",
    "Expect",
    "ExpectItem",
    "Forbid",
    "Group",
    "Ident",
    "Input",
    "Item",
    "Layout",
    "LayoutIs",
    "LearningRate",
    "Let",
    "ListValue",
    "Loss",
    "LossScale",
    "Mesh",
    "Microbatches",
    "Model",
    "Node",
    "Number",
    "OpenEntry",
    "Optimizer",
    "Order",
    "Output",
    "Param",
    "Part",
    "Peak",
    "Phase",
    "Pipeline",
    "PipelineItem",
    "Precision",
    "PrecisionItem",
    "Prefetch",
    "Product",
    "Random",
    "RandomMode",
    "Ref",
    "RestEntry",
    "Scalar",
    "Schedule",
    "Select",
    "Selector",
    "Side",
    "Size",
    "Split",
    "SplitAuto",
    "Stage",
    "Stages",
    "Statement",
    "Store",
    "Text",
    "TimesBound",
    "Tree",
    "Trivia",
    "Typed",
    "TypedWhat",
    "Use",
    "Value",
    "ValueStatement",
    "WholeEntry",
]
# fmt: on


@dataclass(frozen=True, slots=True)
class Use(Item):
    """`use "base.shard"`."""

    path: Text


@dataclass(frozen=True, slots=True)
class Let(Item):
    """`let name = value`."""

    name: Ident
    value: Scalar


@dataclass(frozen=True, slots=True)
class AxisDecl(Item):
    """`name = size over link as data`, or `as model`, inside `mesh`."""

    name: Ident
    size: Scalar
    link: Ident | None = None
    role: AxisRole | None = None


@dataclass(frozen=True, slots=True)
class Mesh(Item):
    """`mesh { ... }`."""

    items: tuple[AxisDecl, ...]


@dataclass(frozen=True, slots=True)
class DimsEntry(Item):
    """`a, b = product`, inside `dims`; a product of None is `_`."""

    names: tuple[Ident, ...]
    product: Product | None


@dataclass(frozen=True, slots=True)
class Dims(Item):
    """`dims { ... }`."""

    items: tuple[DimsEntry, ...]


@dataclass(frozen=True, slots=True)
class Model(Item):
    """`model hf("config.json", task = "causal-lm")` or `model "file.py:build"(width = 64)`."""

    source: Ref
    arguments: tuple[Argument, ...] = ()


@dataclass(frozen=True, slots=True)
class Input(Item):
    """`input names : dtype[shape] below bound [layout]`."""

    refs: tuple[Ref, ...]
    dtype: Ident
    shape: tuple[Scalar, ...]
    below: Scalar | None
    layout: Layout


@dataclass(frozen=True, slots=True)
class Output(Item):
    """`output names [layout]`."""

    refs: tuple[Ref, ...]
    layout: Layout


@dataclass(frozen=True, slots=True)
class Loss(Item):
    """`loss name`."""

    ref: Ref


@dataclass(frozen=True, slots=True)
class Param(Item):
    """`param "pattern" [layout]`."""

    pattern: Text
    layout: Layout


@dataclass(frozen=True, slots=True)
class Buffer(Item):
    """`buffer "pattern" [layout]`."""

    pattern: Text
    layout: Layout


@dataclass(frozen=True, slots=True)
class Store(Item):
    """`store [gradients | optimizer] "pattern" over axes [regather]`."""

    pattern: Text
    axes: Product
    regather: bool = False
    what: str = ""


@dataclass(frozen=True, slots=True)
class ValueStatement(Item):
    """`value "module".out [layout]`."""

    pattern: Text
    selector: Selector | None
    layout: Layout


@dataclass(frozen=True, slots=True)
class Data(Item):
    """`data "corpus.bin" packed (validation = 0.01)`."""

    path: Text
    cut: Cut | None = None
    arguments: tuple[Argument, ...] = ()


@dataclass(frozen=True, slots=True)
class Optimizer(Item):
    """`optimizer adamw(lr = 3e-4)`."""

    name: Ident
    arguments: tuple[Argument, ...] = ()


@dataclass(frozen=True, slots=True)
class Group(Item):
    """`group "**.bias", "**norm**" (weight_decay = 0)`."""

    patterns: tuple[Text, ...]
    arguments: tuple[Argument, ...]


@dataclass(frozen=True, slots=True)
class Phase(Node):
    """`warmup(steps = 200)`, in `learning_rate`."""

    name: Ident
    arguments: tuple[Argument, ...] = ()


@dataclass(frozen=True, slots=True)
class LearningRate(Item):
    """`learning_rate warmup(steps = 200) cosine(steps = 10000)`."""

    phases: tuple[Phase, ...]


@dataclass(frozen=True, slots=True)
class Evaluate(Item):
    """`evaluate every 500 batches 20`, and `on "val.bin"` where its data is another."""

    every: Scalar
    batches: Scalar
    source: Text | None = None


AxisRole = Literal["data", "model"]
AXIS_ROLES: tuple[AxisRole, ...] = ("data", "model")
Cut = Literal["packed", "documents"]
CUTS: tuple[Cut, ...] = ("packed", "documents")
RandomMode = Literal["exact", "fast"]
RANDOM_MODES: tuple[RandomMode, ...] = ("exact", "fast")
TypedWhat = Literal["compute", "master", "reduce"]
TYPED: tuple[TypedWhat, ...] = ("compute", "master", "reduce")


@dataclass(frozen=True, slots=True)
class Random(Item):
    """`random exact` or `random fast`."""

    mode: RandomMode


@dataclass(frozen=True, slots=True)
class Recompute(Item):
    """`recompute "up", "down"`, `recompute to budget`, or `recompute selective` without either."""

    patterns: tuple[Text, ...] = ()
    budget: Scalar | None = None


@dataclass(frozen=True, slots=True)
class Prefetch(Item):
    """`prefetch 512MiB`, inside `schedule`."""

    size: Scalar


@dataclass(frozen=True, slots=True)
class Accumulate(Item):
    """`accumulate 8`."""

    count: Scalar


OnNan = Literal["stop", "skip", "rollback"]
ON_NAN: tuple[OnNan, ...] = ("stop", "skip", "rollback")


@dataclass(frozen=True, slots=True)
class Checkpoint(Item):
    """`checkpoint every 500 keep 3 keep_every 5000 on_nan rollback`."""

    every: Scalar
    keep: Scalar | None = None
    keep_every: Scalar | None = None
    on_nan: OnNan | None = None


@dataclass(frozen=True, slots=True)
class Typed(Item):
    """`master = f32`, inside `precision`: the type of something."""

    what: TypedWhat
    dtype: Ident


@dataclass(frozen=True, slots=True)
class LossScale(Item):
    """`loss_scale = dynamic` or `loss_scale = 65536`, inside `precision`."""

    value: Scalar


PrecisionItem: TypeAlias = "Typed | LossScale"


@dataclass(frozen=True, slots=True)
class Precision(Item):
    """`precision { ... }`."""

    items: tuple[PrecisionItem, ...]


@dataclass(frozen=True, slots=True)
class Schedule(Item):
    """`schedule { ... }`."""

    items: tuple[Prefetch, ...]


@dataclass(frozen=True, slots=True)
class Peak(Item):
    """`peak bf16 = 989e12`, inside `cluster`: operations a second of one device."""

    dtype: Ident
    value: Scalar


@dataclass(frozen=True, slots=True)
class Cluster(Item):
    """`cluster { ... }`."""

    items: tuple[Peak, ...]


@dataclass(frozen=True, slots=True)
class Select(Node):
    """`[phase] op [over axes] [in "modules"]`: some collectives of the plan."""

    phase: str | None
    op: str
    axes: Product | None = None
    pattern: Text | None = None


@dataclass(frozen=True, slots=True)
class Forbid(Item):
    """`forbid select`, inside `expect`."""

    select: Select


@dataclass(frozen=True, slots=True)
class TimesBound(Node):
    """`1.1 * bound`: what any program must send, so many times; once where no factor stands."""

    factor: Scalar | None


@dataclass(frozen=True, slots=True)
class Count(Item):
    """`[bytes] select == bound`, inside `expect`."""

    measure: Literal["count", "bytes"]
    select: Select
    comparison: str
    bound: Scalar | TimesBound


@dataclass(frozen=True, slots=True)
class LayoutIs(Item):
    """`layout "name" [layout]`, inside `expect`."""

    name: Text
    layout: Layout


@dataclass(frozen=True, slots=True)
class LocalIs(Item):
    """`local "name" [4, ?]`, inside `expect`."""

    name: Text
    sizes: tuple[Scalar | OpenEntry, ...]


@dataclass(frozen=True, slots=True)
class LocalBytes(Item):
    """`local bytes "name" <= 4MiB`, inside `expect`."""

    name: Text
    comparison: str
    bound: Scalar


ExpectItem: TypeAlias = "Forbid | Count | LayoutIs | LocalIs | LocalBytes"


@dataclass(frozen=True, slots=True)
class Expect(Item):
    """`expect { ... }`."""

    items: tuple[ExpectItem, ...]


Block: TypeAlias = "Mesh | Dims | Pipeline | Stages | Precision | Schedule | Cluster | Expect"
BlockItem: TypeAlias = (
    "AxisDecl | DimsEntry | PipelineItem | Stage | PrecisionItem | Prefetch | Peak | ExpectItem"
)
Statement: TypeAlias = (
    "Use | Let | Mesh | Dims | Model | Input | Output | Loss | Param | Buffer | Store"
    " | ValueStatement | Optimizer | Group | LearningRate | Random | Recompute | Schedule"
    " | Accumulate | Pipeline | Precision | Checkpoint | Data | Evaluate | Cluster | Expect"
)


@dataclass(frozen=True, slots=True)
class Tree:
    """A whole file; `foot` holds the comments after the last statement."""

    statements: tuple[Statement, ...]
    foot: tuple[str, ...] = ()
    file: str = field(default="", compare=False)
