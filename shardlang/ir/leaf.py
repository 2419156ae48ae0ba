"""Leaves and results: the tensors that enter and leave a program."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum
from typing import TypeAlias

import torch

from shardlang.ir.layout import Layout
from shardlang.ir.mesh import Axis

ValueKey: TypeAlias = "tuple[str, str, str]"
"""(module name, `"in"` or `"out"`, selector such as `""`, `"0"`, `"logits"`)."""


class LeafKind(str, Enum):
    """What a leaf is to the model."""

    PARAM = "param"
    BUFFER = "buffer"
    INPUT = "input"
    CONSTANT = "constant"

    __str__ = str.__str__


class ResultKind(str, Enum):
    """What a result is to the caller: part of the output, or the new value of a buffer."""

    OUTPUT = "output"
    MUTATION = "mutation"

    __str__ = str.__str__


class Stored(str, Enum):
    """What storage splits: each of these with what comes after it."""

    VALUE = "value"
    GRADIENTS = "gradients"
    OPTIMIZER = "optimizer"

    __str__ = str.__str__


@dataclass(frozen=True, slots=True)
class Leaf:
    """One placeholder of a graph.

    Attributes:
        name: a parameter's or buffer's dotted name, an input's dotted name, or a constant's name.
        node: the placeholder's fx name.
        layout: how its gradient and optimizer state lie, and its value too unless it is kept
            gathered; global shape included; whole until the passes place it.
        aliases: other names of a tied parameter or shared buffer.
        persistent: of a buffer, whether it belongs to the state dict.
        store: axes over which the tensor is also split at rest.
        splits: what storage splits; a value that it does not split is kept gathered.
        regather: gather it again for the backward instead of keeping it.
        gathered: the layout of a value that is kept gathered, which follows from the program.
        tied: the name of the parameter that it is a copy of, in a later stage of a pipeline.
        computes: the type to which it is cast before the model computes with it; None for its own.
    """

    name: str
    kind: LeafKind
    node: str
    dtype: torch.dtype
    layout: Layout
    trainable: bool = False
    aliases: tuple[str, ...] = ()
    persistent: bool = True
    store: tuple[Axis, ...] = ()
    splits: Stored = Stored.VALUE
    regather: bool = False
    gathered: Layout | None = None
    computes: torch.dtype | None = None
    tied: str | None = None

    @property
    def at_rest(self) -> Layout:
        """How its value lies between steps."""
        return self.layout if self.gathered is None else self.gathered

    @property
    def shape(self) -> tuple[int, ...]:
        """The global shape."""
        return self.layout.shape

    def held_at(self, axis: Axis, place: int) -> Leaf:
        """The same where all of it lies at one place along an axis (`Layout.held_at`)."""
        gathered = None if self.gathered is None else self.gathered.held_at(axis, place)
        return replace(self, layout=self.layout.held_at(axis, place), gathered=gathered)


@dataclass(frozen=True, slots=True)
class Result:
    """One element of a graph's output tuple.

    An output is named after its place in the model's result (`loss`, `past_key_values.0.key`,
    `output` for a bare tensor, `output.0` in a tuple); a mutation carries the buffer's name. The
    layout is whole until the passes place it.
    """

    name: str
    kind: ResultKind
    dtype: torch.dtype
    layout: Layout
