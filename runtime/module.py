"""The sharded model as an ordinary module: local pieces under the model's own names."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from shardlang.ir.pieces import piece_of
from shardlang.runtime.boundary import from_dtensor, to_dtensor
from shardlang.runtime.errors import RunError
from shardlang.runtime.groups import Groups
from shardlang.runtime.held import Held
from shardlang.runtime.tables import Tables, module_at
from shardlang.runtime.variants import Compiler, Variants
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
        compiler: Compiler,
        groups: Groups,
        tensors: Mapping[str, Tensor],
        transient: Collection[str] = (),
    ) -> None:
        """Load the declared program on this device. Collective: construct it on every rank.

        Args:
            compiler: makes the programs, the declared one and those for other calls.
            tensors: this device's piece of every parameter and persistent buffer, by name.
            transient: buffers that do not belong to the state dict.

        Raises:
            RunError: SH0602, the ranks hold different programs; SH0608, a tensor is missing or has
                another shape; SH0611, devices that hold the same piece differ in its values.
        """
        super().__init__()
        made = compiler.make(compiler.declared, {})
        paths = {name: name.split(".") if name else [] for name in compiler.modules}
        modules = {name: module_at(self, path) for name, path in paths.items()}
        tables = Tables(self, made.program, groups)
        tables.fill(made, tensors, transient)
        variants = Variants(compiler, groups, modules, tables, made)
        slots = {
            x.name: tables.slot(x) for x in made.program.leaves if x.kind in ("param", "buffer")
        }
        kept = frozenset(self.state_dict(keep_vars=True)).intersection(slots)
        self._shardlang = Held(made.program, groups, variants, slots, kept)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the model with this device's pieces of its inputs. Collective.

        A call that differs from the declared one, in the sizes of its inputs, in other arguments,
        in the modules' modes or in which tensors get a gradient, is answered by a program of its
        own, which is compiled when it is first needed.

        Raises:
            RunError: SH0605 or SH0613, no program can answer the call; SH0612, the ranks differ in
                how they call.
        """
        loaded, pieces = self._shardlang.variants.choose(args, kwargs)
        return loaded(pieces)

    def shard_inputs(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """This device's pieces of whole inputs, as keyword arguments for a call. Collective.

        Every rank gives the same whole inputs, of any size. Their gradients come back whole.

        Raises:
            RunError: as for a call; SH0612 also where the ranks give other values.
        """
        variants = self._shardlang.variants
        return variants.compiler.build_inputs(variants.shard(args, kwargs, strict=False))

    def train(self, mode: bool = True) -> ShardedModule:
        """Set the modes of all modules, in the way of the model's own `train`."""
        super().train(mode)
        self._shardlang.variants.set_mode(mode)
        return self

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
