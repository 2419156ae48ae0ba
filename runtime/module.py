"""The sharded model as an ordinary module: local pieces under the model's own names."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from shardlang.ir.pieces import piece_of
from shardlang.ir.program import LeafPlacement, LocalProgram
from shardlang.runtime.boundary import from_dtensor, to_dtensor
from shardlang.runtime.calls import CallConvention, LoadedProgram, Slot
from shardlang.runtime.errors import RunError
from shardlang.runtime.groups import Groups
from shardlang.runtime.held import Held, checked
from shardlang.runtime.whole import whole


class ShardedModule(nn.Module):
    """A program with its parameters, buffers and constants on one device.

    Parameters are this device's pieces; what an optimizer does element by element to them it does
    to the model. `forward` takes this device's pieces of the inputs (see `shard_inputs`) and
    returns its pieces of the outputs. An output that no axis splits, such as the loss, is whole on
    every device, and `loss.backward()` there gives every parameter the gradient of its piece.
    """

    def __init__(
        self,
        program: LocalProgram,
        groups: Groups,
        tensors: Mapping[str, Tensor],
        call: CallConvention | None = None,
        transient: Collection[str] = (),
    ) -> None:
        """Load the program on this device. Collective: construct it on every rank.

        Args:
            tensors: this device's piece of every parameter, buffer and constant, by name.
            call: the model's own calling convention; by default names in, names out.
            transient: buffers that do not belong to the state dict.

        Raises:
            RunError: SH0602, the ranks hold different programs; SH0608, a tensor is missing or has
                another shape.
        """
        super().__init__()
        slots: dict[str, Slot] = {}
        for leaf in program.leaves:
            if leaf.kind == "constant":
                slots[leaf.name] = ({leaf.name: checked(leaf, tensors, groups)}, leaf.name)
            elif leaf.kind != "input":
                _register(self, leaf, checked(leaf, tensors, groups), transient)
                slots[leaf.name] = _slot(self, leaf)
        kept = frozenset(self.state_dict(keep_vars=True)).intersection(slots)
        self._shardlang = Held(
            program, groups, LoadedProgram(program, groups, slots, call), slots, kept
        )

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the model with this device's pieces of its inputs."""
        return self._shardlang.loaded(args, kwargs)

    def shard_inputs(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """This device's pieces of whole inputs, as keyword arguments for a call."""
        return self._shardlang.loaded.shard_inputs(args, kwargs)

    @torch.no_grad()
    def full_state_dict(self) -> dict[str, Tensor]:
        """A copy of the plain model's state dict, whole on every device. Collective."""
        full: dict[str, Tensor] = {}
        for leaf, piece in self._shardlang.placements():
            value = whole(piece.detach(), leaf.layout, self._shardlang.groups)
            value = value.clone() if value.data_ptr() == piece.data_ptr() else value
            full.update(dict.fromkeys((leaf.name, *leaf.aliases), value))
        return full

    @torch.no_grad()
    def load_full_state_dict(self, full: Mapping[str, Tensor]) -> None:
        """Take this device's pieces of a plain model's state dict.

        Raises:
            RunError: SH0608, a tensor is missing or has another shape.
        """
        for leaf, piece in self._shardlang.placements():
            value = next((full[n] for n in (leaf.name, *leaf.aliases) if n in full), None)
            if value is None or tuple(value.shape) != leaf.layout.shape:
                found = "missing" if value is None else f"of shape {list(value.shape)}"
                expected = list(leaf.layout.shape)
                raise RunError(
                    "SH0608",
                    f"`{leaf.name}` is {found}; it should be {expected}",
                    help="give the state dict of the plain model, under its own names",
                )
            piece.copy_(piece_of(value, leaf.layout, self._shardlang.groups.coord))

    def dtensor_state_dict(self) -> dict[str, DTensor]:
        """The state dict as DTensors, for `torch.distributed.checkpoint`. Collective.

        They share the parameters' memory where a DTensor can say the layout; call
        `load_dtensor_state_dict` after loading into them.
        """
        pairs = self._shardlang.placements()
        return {leaf.name: to_dtensor(x, leaf.layout, self._shardlang.groups) for leaf, x in pairs}

    @torch.no_grad()
    def load_dtensor_state_dict(self, given: Mapping[str, DTensor]) -> None:
        """Take over the values of a state dict that `dtensor_state_dict` made."""
        for leaf, piece in self._shardlang.placements():
            value = from_dtensor(given[leaf.name], leaf.layout, self._shardlang.groups)
            if value.data_ptr() != piece.data_ptr():
                piece.copy_(value)


def held(module: ShardedModule) -> Held:
    """The program of a sharded module, its groups, and where its tensors lie."""
    return module._shardlang


def _register(
    root: nn.Module, leaf: LeafPlacement, piece: Tensor, transient: Collection[str]
) -> None:
    """Put a tensor under its name, and under the other names of a tied one."""
    value = nn.Parameter(piece, leaf.trainable) if leaf.kind == "param" else piece
    for name in (leaf.name, *leaf.aliases):
        owner, last = _owner(root, name)
        if isinstance(value, nn.Parameter):
            owner.register_parameter(last, value)
        else:
            kept = not transient_name(name, leaf, transient)
            owner.register_buffer(last, value, persistent=kept)


def transient_name(name: str, leaf: LeafPlacement, transient: Collection[str]) -> bool:
    """Whether a buffer stays out of the state dict, under any of its names."""
    return name in transient or leaf.name in transient


def _owner(root: nn.Module, name: str) -> tuple[nn.Module, str]:
    """The module that holds a dotted name, made if need be, and the last part of the name."""
    *path, last = name.split(".")
    owner = root
    for part in path:
        if part not in owner._modules:
            owner.add_module(part, nn.Module())
        child = owner._modules[part]
        assert child is not None
        owner = child
    return owner, last


def _slot(root: nn.Module, leaf: LeafPlacement) -> Slot:
    """Where a module keeps the tensor of a leaf."""
    owner, last = _owner(root, leaf.name)
    return (owner._parameters if leaf.kind == "param" else owner._buffers), last
