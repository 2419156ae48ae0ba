"""The update of a step: the optimizer on this device's parts, and the gathers after it.

An optimizer's state lies as the gradients do (`Leaf.layout`). Where a parameter's value is kept
gathered, the optimizer sees this device's part of it alone, and the parts of all devices are
gathered into the values afterwards. One device's share of that is here; what joins the devices is
`UpdateProgram`, which the simulator runs too.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from shardlang.ir.leaf import Leaf
from shardlang.ir.mesh import Coord, Mesh
from shardlang.ir.precision import wider
from shardlang.ir.step import UpdateProgram
from shardlang.runtime.narrowing import Narrowing

COPIED_BYTES = 25 * 2**20
"""The most that copies of gradients take at once in an update, but for a larger one."""


@dataclass(slots=True)
class Part:
    """This device's part of one parameter.

    Attributes:
        value: this device's shard of the value.
        tensor: the part, on which the optimizer works.
        cut: from the value to the part; None where they are the same.
        own: whether the part has memory of its own, apart from the value: as a master weight, which
            is wider than the value, or where the value holds it in several stretches.
        seen: the version of the value that the part stands for.
    """

    value: Tensor
    tensor: nn.Parameter
    cut: Narrowing | None
    own: bool
    seen: int

    @staticmethod
    @torch.no_grad()
    def of(
        value: Tensor, cut: Narrowing | None, master: torch.dtype | None, apart: bool = False
    ) -> Part:
        """The part that `cut` makes of a value, in the type of master weights if that is wider.

        Args:
            apart: it has memory of its own whatever its type.
        """
        value = value.detach()
        part = value if cut is None else cut(value)
        dtype = wider(value.dtype, master)
        own = apart or dtype != value.dtype or not part.is_contiguous()
        own = own or (cut is not None and not cut.contiguous)
        held = part.to(dtype, copy=True).contiguous() if own else part
        return Part(value, nn.Parameter(held), cut, own, value._version)

    def copies(self, given: Tensor, scale: float) -> bool:
        """Whether its part of a gradient takes memory of its own."""
        if scale != 1.0 or given.dtype != self.tensor.dtype:
            return True
        if self.cut is None or given.shape == self.tensor.shape:
            return given.stride() != self.tensor.stride()
        return not self.cut.contiguous or self.cut(given).stride() != self.tensor.stride()

    @torch.no_grad()
    def of_gradient(self, given: Tensor, scale: float = 1.0) -> Tensor:
        """This device's part of a gradient, which may lie as the value does.

        It has the strides of the parameter: fused optimizers read both in the order of memory.

        Args:
            scale: by what the loss was multiplied, which is undone in the part's own type.
        """
        same = self.cut is None or given.shape == self.tensor.shape
        part = given if same or self.cut is None else self.cut(given)
        if part.stride() == self.tensor.stride() and part.dtype == self.tensor.dtype:
            return part if scale == 1.0 else part / scale
        made = torch.empty_like(self.tensor).copy_(part)
        return made if scale == 1.0 else made.div_(scale)

    @torch.no_grad()
    def refresh(self) -> None:
        """Take over what was written to the value by others."""
        if self.own and self.value._version != self.seen:
            self.tensor.copy_(self.value if self.cut is None else self.cut(self.value))
            self.seen = self.value._version

    @torch.no_grad()
    def give(self) -> None:
        """Write the part to the value, where it lies apart and is not gathered into it."""
        if self.own and self.cut is None:
            self.value.copy_(self.tensor)

    def narrowed(self) -> Tensor:
        """The part in the type of the value."""
        return self.tensor.detach().to(self.value.dtype)


class DeviceUpdate:
    """An optimizer on one device's parts of some parameters.

    Attributes:
        parts: by the name of the parameter.
    """

    def __init__(
        self,
        leaves: Sequence[Leaf],
        values: Mapping[str, Tensor],
        mesh: Mesh,
        coord: Coord,
        master: torch.dtype | None = None,
        apart: Collection[str] = (),
    ) -> None:
        """Cut the parts.

        Args:
            leaves: the parameters that are trained.
            values: this device's shards of their values, by name.
            master: the type of the master weights of narrower parameters.
            apart: parameters that have one whatever their type.
        """
        cuts = {
            x.name: Narrowing.of(x.gathered, x.layout, coord) if x.gathered else None
            for x in leaves
        }
        self.parts = {
            x.name: Part.of(values[x.name], cuts[x.name], master, x.name in apart) for x in leaves
        }
        axes = [axis.name for axis in mesh.axes]
        self._counted = [x.name for x in leaves if _counts(x, axes, coord)]
        self._later: dict[str, Tensor] = {}
        self._scale = 1.0
        self._clipped: tuple[Tensor, float] | None = None

    @property
    def named(self) -> dict[str, nn.Parameter]:
        """What an optimizer works on, by name."""
        return {name: part.tensor for name, part in self.parts.items()}

    @property
    def tensors(self) -> list[nn.Parameter]:
        """What an optimizer works on."""
        return [part.tensor for part in self.parts.values()]

    def load(self, gradients: Mapping[str, Tensor], scale: float = 1.0) -> None:
        """Take gradients, which may be whole, and what was written to the values.

        Those that lie otherwise than the parts, or in other types, are copied when they are used.

        Args:
            scale: by what the loss was multiplied.
        """
        self.drop()
        self._scale = scale
        for name, part in self.parts.items():
            part.refresh()
            given = gradients.get(name)
            if given is not None and part.copies(given, scale):
                self._later[name] = given
            elif given is not None:
                part.tensor.grad = part.of_gradient(given)

    def squares(self) -> Tensor:
        """The sum of squares of the gradients that this device counts, in float64."""
        device = self.tensors[0].device
        if not self._later:
            return squared_norm((self.parts[x].tensor.grad for x in self._counted), device)
        made = (self._gradient(name) for name in self._counted)
        return squared_norm([torch.linalg.vector_norm(x) for x in made if x is not None], device)

    def _gradient(self, name: str) -> Tensor | None:
        """This device's part of a gradient, for a moment."""
        part, given = self.parts[name], self._later.get(name)
        return part.tensor.grad if given is None else part.of_gradient(given, self._scale)

    def may_step(self, norm: Tensor) -> bool:
        """Whether all gradients of all devices are finite, of which `norm` is the norm."""
        return math.isfinite(norm.item())

    def clip(self, norm: Tensor, largest: float) -> None:
        """Scale the gradients, of which `norm` is the norm of all, so that it is `largest`."""
        clip(self.tensors, norm, largest)
        self._clipped = norm, largest

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """Let an optimizer change the parts, so that few copies of gradients are there at once."""
        if not self._later or any(tensor.grad is not None for tensor in self.tensors):
            optimizer.step()
        self._let_go()
        for names in self._in_turn():
            tensors = [self.parts[name].tensor for name in names]
            for name, tensor in zip(names, tensors, strict=True):
                tensor.grad = self._gradient(name)
            if self._clipped is not None:
                clip(tensors, *self._clipped)
            optimizer.step()
            self._let_go()

    def _in_turn(self) -> Iterator[list[str]]:
        """The parts whose gradients are copied, as many at a time as `COPIED_BYTES` hold."""
        names, filled = list[str](), 0
        for name in self._later:
            size = self.parts[name].tensor.nbytes
            if names and filled + size > COPIED_BYTES:
                yield names
                names, filled = [], 0
            names.append(name)
            filled += size
        if names:
            yield names

    def _let_go(self) -> None:
        for tensor in self.tensors:
            tensor.grad = None

    def drop(self) -> None:
        """Let go of the gradients."""
        self._let_go()
        self._later, self._clipped = {}, None

    def held(self, names: Sequence[str]) -> list[Tensor]:
        """The values of some parameters, and then their parts, as `UpdateProgram` takes them."""
        parts = [self.parts[name] for name in names]
        return [part.value for part in parts] + [part.narrowed() for part in parts]

    def give(self) -> None:
        """Write parts that lie apart from their values to them, but for those that are gathered."""
        for part in self.parts.values():
            part.give()

    def settle(self) -> None:
        """Note that the values stand for the parts: all that was written to them is theirs."""
        for part in self.parts.values():
            part.seen = part.value._version


def held_here(update: UpdateProgram, leaves: Iterable[Leaf], coord: Coord) -> list[str]:
    """The parameters that a device gathers after an update: nothing of other stages."""
    own = {leaf.name for leaf in leaves if 0 not in leaf.at_rest.local_shape(coord)}
    return [name for name in update.names if name in own]


def lies_apart(leaf: Leaf, coord: Coord, master: torch.dtype | None = None) -> bool:
    """Whether an optimizer works on a copy of a device's part of a parameter (`Part.own`)."""
    if leaf.gathered is None:
        return wider(leaf.dtype, master) != leaf.dtype
    value = torch.empty(leaf.at_rest.local_shape(coord), dtype=leaf.dtype, device="meta")
    return Part.of(value, Narrowing.of(leaf.gathered, leaf.layout, coord), master).own


def _counts(leaf: Leaf, axes: Sequence[str], coord: Coord) -> bool:
    """Whether a device counts its part of a gradient for the norm: the first that holds it."""
    split = {axis.name for axis in leaf.layout.sharded}
    return all(coord[name] == 0 for name in axes if name not in split)


def squared_norm(gradients: Iterable[Tensor | None], device: torch.device) -> Tensor:
    """The sum of squares of all gradients that are there, in float64."""
    found = [x for x in gradients if x is not None]
    if not found:
        return torch.zeros((), dtype=torch.float64, device=device)
    return torch.nn.utils.get_total_norm(found).double().square()


def clip(params: Iterable[Tensor], norm: Tensor, largest: float) -> None:
    """Scale all gradients so that their norm is at most `largest`."""
    scaled = [param for param in params if param.grad is not None]
    if not any(param.dtype.to_real() is torch.float64 for param in scaled):
        norm = norm.float()
    torch.nn.utils.clip_grads_with_norm_(scaled, largest, norm, foreach=True)
