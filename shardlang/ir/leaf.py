"""Leaves and results: the tensors that enter and leave a program."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class Leaf:
    """One placeholder of the graph.

    `name` is a parameter's or buffer's dotted name, an input's dotted name, or a constant's name.
    `aliases` are the other names of a tied parameter or shared buffer. `persistent` says of a
    buffer whether it belongs to the state dict.
    """

    name: str
    kind: str
    node: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    trainable: bool = False
    aliases: tuple[str, ...] = ()
    persistent: bool = True
