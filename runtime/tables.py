"""Where the tensors of a sharded module lie, and programs that find them there."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence

from torch import Tensor, nn

from shardlang.ir.pieces import piece_of
from shardlang.ir.program import LeafPlacement, LocalProgram
from shardlang.runtime.agree import check_replicas
from shardlang.runtime.calls import LoadedProgram, Made, Slot, tensor_at
from shardlang.runtime.checks import check_same_program
from shardlang.runtime.errors import RunError
from shardlang.runtime.groups import Groups
from shardlang.runtime.sharding import Sharding
from shardlang.runtime.tensor import sharded
from shardlang.runtime.whole import held_piece

_WEIGHTS = "give every parameter's and buffer's piece, cut as the program's leaves lie"


class Tables:
    """The parameters and buffers of a module tree, under the names of a program's leaves."""

    def __init__(self, root: nn.Module, first: LocalProgram, groups: Groups) -> None:
        self._root, self._groups = root, groups
        self._layouts = {leaf.name: leaf.layout for leaf in first.leaves}

    def fill(self, made: Made, tensors: Mapping[str, Tensor], transient: Collection[str]) -> None:
        """Register every parameter and buffer of the first program. Collective.

        Raises:
            RunError: SH0608, a tensor is missing or has another shape; SH0611, devices that hold
                the same piece differ in its values.
        """
        check_same_program(made.program, self._groups)
        kept = [leaf for leaf in made.program.leaves if leaf.kind in ("param", "buffer")]
        for leaf in kept:
            piece = checked(leaf, {**self._constant(made, leaf), **tensors}, self._groups)
            register(self._root, leaf, piece, self._groups, transient)
        held = {leaf.name: (held_piece(tensor_at(self.slot(leaf))), leaf.layout) for leaf in kept}
        check_replicas(held, self._groups)

    def slot(self, leaf: LeafPlacement) -> Slot:
        """Where the tensor of a leaf is found."""
        return slot_of(self._root, leaf.name, leaf.kind)

    def load(self, made: Made) -> LoadedProgram:
        """A program on these tensors, and on constants of its own. Collective.

        Raises:
            RunError: SH0602, the ranks hold different programs; SH0605, a tensor lies elsewhere;
                SH0611, devices that hold the same piece of a constant differ in its values.
        """
        leaves = [leaf for leaf in made.program.leaves if leaf.kind != "input"]
        check_same_program(made.program, self._groups)
        slots = {leaf.name: self._slots(made, leaf) for leaf in leaves}
        loaded = LoadedProgram(made, self._groups, slots)
        constants = [leaf for leaf in leaves if leaf.kind == "constant"]
        held = {leaf.name: (tensor_at(slots[leaf.name][0]), leaf.layout) for leaf in constants}
        check_replicas(held, self._groups)
        return loaded

    def _slots(self, made: Made, leaf: LeafPlacement) -> list[Slot]:
        """The place of a tensor, and of its other names; a constant's is its program's own."""
        if leaf.kind == "constant":
            piece = checked(leaf, self._constant(made, leaf), self._groups)
            return [({leaf.name: piece}, leaf.name)]
        if self._layouts.setdefault(leaf.name, leaf.layout) != leaf.layout:
            raise RunError("SH0605", f"`{leaf.name}` lies elsewhere for such a call")
        owner, last = owner_of(self._root, leaf.name)
        if last not in owner._parameters and last not in owner._buffers:
            piece = checked(leaf, self._constant(made, leaf), self._groups)
            register(self._root, leaf, piece, self._groups, made.constants.keys())
        return self.slots(leaf)

    def slots(self, leaf: LeafPlacement) -> list[Slot]:
        """Where the tensor of a leaf is found under each of its names."""
        return [slot_of(self._root, name, leaf.kind) for name in (leaf.name, *leaf.aliases)]

    def on(self, root: nn.Module) -> Tables:
        """The same tables of a copy of the module."""
        other = copy.copy(self)
        other._root, other._layouts = root, dict(self._layouts)
        return other

    def _constant(self, made: Made, leaf: LeafPlacement) -> dict[str, Tensor]:
        """This device's piece of a constant, or of a buffer that no state dict holds.

        It has memory of its own: a program may be loaded twice, and may write into a buffer.
        """
        if leaf.name not in made.constants:
            return {}
        whole = made.constants[leaf.name]
        return {leaf.name: piece_of(whole, leaf.layout, self._groups.coord).clone()}


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


def register(
    root: nn.Module,
    leaf: LeafPlacement,
    piece: Tensor,
    groups: Groups,
    transient: Collection[str],
) -> None:
    """Put a tensor under its name, and under the other names of a tied one.

    Buffers in `transient`, under any of their names, stay out of the state dict.
    """
    tensor = sharded(piece, Sharding(leaf.layout, groups)) if groups.mesh.devices > 1 else piece
    value = nn.Parameter(tensor, leaf.trainable) if leaf.kind == "param" else tensor
    for name in (leaf.name, *leaf.aliases):
        owner, last = owner_of(root, name)
        if isinstance(value, nn.Parameter):
            owner.register_parameter(last, value)
        else:
            kept = name not in transient and leaf.name not in transient
            owner.register_buffer(last, value, persistent=kept)


def module_at(root: nn.Module, path: Sequence[str]) -> nn.Module:
    """The module at a path, made if need be."""
    owner = root
    for part in path:
        if part not in owner._modules:
            owner.add_module(part, nn.Module())
        child = owner._modules[part]
        assert child is not None
        owner = child
    return owner


def owner_of(root: nn.Module, name: str) -> tuple[nn.Module, str]:
    """The module that holds a dotted name, made if need be, and the last part of the name."""
    *path, last = name.split(".")
    return module_at(root, path), last


def slot_of(root: nn.Module, name: str, kind: str) -> Slot:
    """Where a module keeps a tensor."""
    owner, last = owner_of(root, name)
    return (owner._parameters if kind == "param" else owner._buffers), last
