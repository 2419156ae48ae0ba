"""Words for the arguments of a call that are handed on unread, and the tensors among them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

from torch import Tensor

from shardlang.ir.compat import tree_leaves

Args: TypeAlias = "tuple[object, ...]"
"""The positional arguments of a call: tensors, numbers, containers of them."""

Kwargs: TypeAlias = "Mapping[str, object]"
"""The keyword arguments of a call."""


def tensors_in(tree: object) -> list[Tensor]:
    """The tensors in nested containers, in order."""
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
