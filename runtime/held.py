"""What a sharded module holds beside its tensors, in one place that no model's names reach."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from shardlang.ir.leaf import Leaf
from shardlang.ir.program import LocalProgram
from shardlang.runtime.backends import Backends
from shardlang.runtime.calls import Slot, tensor_at
from shardlang.runtime.groups import Groups
from shardlang.runtime.variants import Variants
from shardlang.runtime.whole import whole_on_first


@dataclass(frozen=True, slots=True, eq=False)
class Held:
    """The program of a sharded module, and where its tensors are found.

    Attributes:
        variants: the programs for other calls; the declared one is the first of them.
        slots: where the tensor of each leaf that is not an input is found.
        kept: the leaves in the state dict.
        backends: what compiles the programs.
    """

    program: LocalProgram
    groups: Groups
    variants: Variants
    slots: Mapping[str, Slot]
    kept: frozenset[str]
    backends: Backends

    def tensors(self) -> Iterator[tuple[Leaf, Tensor]]:
        """Every tensor of the state dict once, with its leaf."""
        self.variants.check()
        for leaf in self.program.leaves:
            if leaf.name in self.kept:
                yield leaf, tensor_at(self.slots[leaf.name])

    @torch.no_grad()
    def whole_tensors(self) -> Iterator[tuple[Leaf, Tensor | None]]:
        """Every tensor of the state dict whole, on rank 0 alone, one at a time. Collective."""
        self.variants.check_together()
        for leaf, tensor in self.tensors():
            yield leaf, whole_on_first(tensor.detach(), leaf.at_rest, self.groups)
