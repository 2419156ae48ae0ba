"""What a sharded module holds beside its tensors, in one place that no model's names reach."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from shardlang.ir.program import LeafPlacement, LocalProgram
from shardlang.runtime.calls import CallConvention, LoadedProgram, Slot
from shardlang.runtime.errors import RunError
from shardlang.runtime.groups import Groups
from shardlang.runtime.whole import whole_on_first


@dataclass(frozen=True, slots=True, eq=False)
class Held:
    """The program of a sharded module, and where its tensors are found.

    Attributes:
        loaded: the program as this device runs it.
        slots: where the tensor of each leaf that is no input is found.
        kept: the leaves in the state dict.
    """

    program: LocalProgram
    groups: Groups
    loaded: LoadedProgram
    slots: Mapping[str, Slot]
    kept: frozenset[str]

    def placements(self) -> Iterator[tuple[LeafPlacement, Tensor]]:
        """Every tensor of the state dict once, with how it lies."""
        for leaf in self.program.leaves:
            if leaf.name in self.kept:
                table, key = self.slots[leaf.name]
                yield leaf, table[key]

    @torch.no_grad()
    def whole_tensors(self) -> Iterator[tuple[LeafPlacement, Tensor | None]]:
        """Every tensor of the state dict whole, on rank 0 alone, one at a time. Collective."""
        for leaf, tensor in self.placements():
            yield leaf, whole_on_first(tensor.detach(), leaf.layout, self.groups)

    def resized(
        self, program: LocalProgram, call: CallConvention, constants: Mapping[str, Tensor]
    ) -> LoadedProgram:
        """Another program on the same parameters and buffers. Collective.

        Args:
            constants: this device's pieces of the other program's constants.

        Raises:
            RunError: SH0605, the other program has them elsewhere.
        """
        mine = {leaf.name: leaf.layout for leaf in self.program.leaves}
        slots: dict[str, Slot] = {}
        for leaf in program.leaves:
            if leaf.kind == "constant":
                slots[leaf.name] = ({leaf.name: checked(leaf, constants, self.groups)}, leaf.name)
            elif leaf.kind != "input":
                if leaf.name not in mine or mine[leaf.name] != leaf.layout:
                    raise RunError(
                        "SH0605", f"`{leaf.name}` lies elsewhere for a batch of this size"
                    )
                slots[leaf.name] = self.slots[leaf.name]
        return LoadedProgram(program, self.groups, slots, call)


_WEIGHTS = "give every parameter's and buffer's piece, cut as the program's leaves lie"


def checked(leaf: LeafPlacement, tensors: Mapping[str, Tensor], groups: Groups) -> Tensor:
    """This device's piece of a leaf, on the device.

    Raises:
        RunError: SH0608, it is missing or has another shape.
    """
    shape = leaf.layout.local_shape(groups.coord)
    if leaf.name not in tensors:
        raise RunError("SH0608", f"the weights lack `{leaf.name}`", help=_WEIGHTS)
    piece = tensors[leaf.name].detach()
    if tuple(piece.shape) != shape:
        raise RunError(
            "SH0608",
            f"the piece of `{leaf.name}` is {list(piece.shape)}, not {list(shape)}",
            help=_WEIGHTS,
        )
    return piece.to(device=groups.device, dtype=leaf.dtype).contiguous()
