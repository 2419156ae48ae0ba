"""What binding needs to know of a model, and what it makes of a spec."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from shardlang.ir.leaf import ValueKey
from shardlang.ir.mesh import Axis
from shardlang.ir.optimizers import GroupRule
from shardlang.ir.records import Stated
from shardlang.spec.types import StoreDecl

Shape: TypeAlias = "tuple[int, ...]"


@dataclass(frozen=True, slots=True)
class ModelNames:
    """All names of a model that a spec can speak of.

    Attributes:
        aliases: the other names of tied parameters and shared buffers, to the name in `params`
            or `buffers`.
        modules: dotted module names; the root is `""`.
        values: shapes of the tensors that modules read and return.
    """

    params: Mapping[str, Shape] = field(default_factory=dict)
    buffers: Mapping[str, Shape] = field(default_factory=dict)
    inputs: Mapping[str, Shape] = field(default_factory=dict)
    modules: tuple[str, ...] = ()
    outputs: Mapping[str, Shape] = field(default_factory=dict)
    values: Mapping[ValueKey, Shape] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Binding:
    """What a spec states of one model, by name; a tensor that is not named is not stated.

    Attributes:
        storage: the axes over which each stored parameter is sharded further at rest.
        stores: the statement by which each of them is stored.
        loss: the name of the output stated to be the loss.
        groups: the parameters that the optimizer updates by arguments of their own.
        recompute: the modules that the backward computes again, none inside another.
    """

    params: Mapping[str, Stated]
    buffers: Mapping[str, Stated]
    inputs: Mapping[str, Stated]
    outputs: Mapping[str, Stated]
    values: Mapping[ValueKey, Stated]
    storage: Mapping[str, tuple[Axis, ...]]
    stores: Mapping[str, StoreDecl]
    loss: str | None
    recompute: tuple[str, ...] = ()
    groups: tuple[GroupRule, ...] = ()
