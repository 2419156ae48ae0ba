"""The nodes of `pipeline { ... }`; see `shardlang.grammar.tree`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from shardlang.grammar.leaves import Argument, Ident, Item, Ref, Scalar, Text


@dataclass(frozen=True, slots=True)
class Split(Item):
    """`split "model.layers"`, inside `pipeline`: the layers of module lists, dealt out evenly."""

    lists: tuple[Text, ...]


@dataclass(frozen=True, slots=True)
class SplitAuto(Item):
    """`split auto`, inside `pipeline`: stages that are alike in work and memory."""


@dataclass(frozen=True, slots=True)
class Stage(Item):
    """`stage "embed", "layers.{0..3}"`, inside `split`: the modules of a stage."""

    modules: tuple[Text, ...]


@dataclass(frozen=True, slots=True)
class Stages(Item):
    """`split { ... }`, inside `pipeline`: the stages one by one."""

    items: tuple[Stage, ...]


@dataclass(frozen=True, slots=True)
class Order(Item):
    """`schedule interleaved_1f1b(virtual = 2)` or `schedule "mine.csv"`, inside `pipeline`."""

    name: Ref
    arguments: tuple[Argument, ...] = ()


@dataclass(frozen=True, slots=True)
class Microbatches(Item):
    """`microbatches 16`, inside `pipeline`."""

    count: Scalar


PipelineItem: TypeAlias = "Split | SplitAuto | Stages | Order | Microbatches"


@dataclass(frozen=True, slots=True)
class Pipeline(Item):
    """`pipeline axis { ... }`."""

    axis: Ident
    items: tuple[PipelineItem, ...]
