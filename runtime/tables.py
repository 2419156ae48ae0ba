"""Where the tensors of a sharded module lie, and programs that find them there."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor, nn

from shardlang.ir.layout import Layout
from shardlang.ir.leaf import Leaf, LeafKind
from shardlang.ir.program import LocalProgram
from shardlang.ir.shards import shard_of
from shardlang.runtime.calls import LoadedProgram, Made, Slot, tensor_at
from shardlang.runtime.checks import check_same_program
from shardlang.runtime.errors import RunError
from shardlang.runtime.groups import Groups
from shardlang.runtime.replicas import check_replicas
from shardlang.runtime.sharding import Sharding
from shardlang.runtime.tensor import Sharded, sharded
from shardlang.runtime.whole import held_shard

_WEIGHTS = "give every parameter's and buffer's shard, cut as the program's leaves lie"


@dataclass(frozen=True, slots=True)
class _Held:
    """A leaf, where its tensor is found under each of its names, and how that lies as a whole."""

    leaf: Leaf
    slots: list[Slot]
    shape: tuple[int, ...]
    layout: Layout

    @staticmethod
    def of(leaf: Leaf, slots: list[Slot]) -> _Held:
        return _Held(leaf, slots, leaf.at_rest.shape, leaf.at_rest.unlabelled())


class _Fit:
    """How tensors lay when they were last looked at; what lies so needs no other look."""

    def __init__(self, held: Sequence[_Held]) -> None:
        self.count = len(held)
        self._slots = [one.slots[0] for one in held]
        self._tied = [(one.slots[0], other) for one in held for other in one.slots[1:]]
        self._lay = self._now()

    def __call__(self) -> bool:
        """Whether they lie so now."""
        tied = all(table.get(key) is one[0].get(one[1]) for one, (table, key) in self._tied)
        return tied and self._now() == self._lay

    def _now(self) -> list[object]:
        found = (table.get(key) for table, key in self._slots)
        return [getattr(x, "sharding", None) or getattr(x, "shape", None) for x in found]


class Tables:
    """The parameters and buffers of a module tree, under the names of a program's leaves."""

    def __init__(self, root: nn.Module, first: LocalProgram, groups: Groups) -> None:
        self._root, self._groups = root, groups
        self._layouts = {leaf.name: leaf.at_rest for leaf in first.leaves}
        self._alone = groups.mesh.devices == 1
        self._held: list[_Held] = []
        self._fit: _Fit | None = None

    def fill(self, made: Made, tensors: Mapping[str, Tensor], transient: Collection[str]) -> None:
        """Register every parameter and buffer of the first program. Collective.

        Raises:
            RunError: SH0608, a tensor is missing or has another shape; SH0611, devices that hold
                the same shard differ in its values.
        """
        check_same_program(made.program, self._groups)
        kept = [
            leaf for leaf in made.program.leaves if leaf.kind in (LeafKind.PARAM, LeafKind.BUFFER)
        ]
        for leaf in kept:
            shard = checked(leaf, {**self._constant(made, leaf), **tensors}, self._groups)
            register(self._root, leaf, shard, self._groups, transient)
            self._held.append(_Held.of(leaf, self.slots(leaf)))
        check_replicas(self.held(), self._groups)

    def held(self) -> dict[str, tuple[Tensor, Layout]]:
        """This device's shard of every parameter and buffer, with its layout."""
        return {
            one.leaf.name: (held_shard(tensor_at(one.slots[0])), one.leaf.at_rest)
            for one in self._held
        }

    def slot(self, leaf: Leaf) -> Slot:
        """Where the tensor of a leaf is found."""
        return slot_of(self._root, leaf.name, leaf.kind)

    def load(self, made: Made) -> LoadedProgram:
        """A program on these tensors, and on constants of its own. Collective.

        Raises:
            RunError: SH0602, the ranks hold different programs; SH0605, a tensor lies elsewhere;
                SH0611, devices that hold the same shard of a constant differ in its values.
        """
        leaves = [leaf for leaf in made.program.leaves if leaf.kind is not LeafKind.INPUT]
        check_same_program(made.program, self._groups)
        slots = {leaf.name: self._slots(made, leaf) for leaf in leaves}
        loaded = LoadedProgram(made, self._groups, slots)
        constants = [leaf for leaf in leaves if leaf.kind is LeafKind.CONSTANT]
        held = {leaf.name: (tensor_at(slots[leaf.name][0]), leaf.at_rest) for leaf in constants}
        check_replicas(held, self._groups)
        return loaded

    def _slots(self, made: Made, leaf: Leaf) -> list[Slot]:
        """The place of a tensor, and of its other names; a constant's is its program's own."""
        if leaf.kind is LeafKind.CONSTANT:
            shard = checked(leaf, self._constant(made, leaf), self._groups)
            return [({leaf.name: shard}, leaf.name)]
        if self._layouts.setdefault(leaf.name, leaf.at_rest) != leaf.at_rest:
            raise RunError("SH0605", f"`{leaf.name}` lies elsewhere for such a call")
        owner, last = owner_of(self._root, leaf.name)
        if owner._parameters.get(last) is None and owner._buffers.get(last) is None:
            shard = checked(leaf, self._constant(made, leaf), self._groups)
            register(self._root, leaf, shard, self._groups, made.constants.keys())
            self._held.append(_Held.of(leaf, self.slots(leaf)))
        if leaf.gathered is not None:
            tensor = tensor_at(self.slot(leaf))
            if isinstance(tensor, Sharded):
                tensor.gradient = Sharding(leaf.layout, self._groups)
        return self.slots(leaf)

    def slots(self, leaf: Leaf) -> list[Slot]:
        """Where the tensor of a leaf is found under each of its names."""
        return [slot_of(self._root, name, leaf.kind) for name in (leaf.name, *leaf.aliases)]

    def on(self, root: nn.Module) -> Tables:
        """The same tables of a copy of the module."""
        other = copy.copy(self)
        other._root, other._layouts = root, dict(self._layouts)
        other._held = [replace(one, slots=other.slots(one.leaf)) for one in self._held]
        other._fit = None
        return other

    def check(self) -> None:
        """Look for tensors that the programs cannot run on.

        Raises:
            RunError: SH0613, one is missing, lies elsewhere, or is no longer tied.
        """
        if self._fit is not None and self._fit.count == len(self._held) and self._fit():
            return
        for one in self._held:
            (table, key), *others = one.slots
            found = table.get(key)
            if not self._fits(found, one):
                raise _replaced(one.leaf, found)
            for name, (table, key) in zip(one.leaf.aliases, others, strict=True):
                if table.get(key) is not found:
                    raise _untied(one.leaf.name, name)
        self._fit = _Fit(self._held)

    def _fits(self, found: Tensor | None, held: _Held) -> bool:
        if self._alone:
            return isinstance(found, Tensor) and found.shape == held.shape
        return isinstance(found, Sharded) and found.sharding.layout == held.layout

    def _constant(self, made: Made, leaf: Leaf) -> dict[str, Tensor]:
        """This device's shard of a constant, or of a buffer that no state dict holds.

        It has memory of its own: a program may be loaded twice, and may write into a buffer.
        """
        if leaf.name not in made.constants:
            return {}
        whole = made.constants[leaf.name]
        return {leaf.name: shard_of(whole, leaf.at_rest, self._groups.coord).clone()}


def checked(leaf: Leaf, tensors: Mapping[str, Tensor], groups: Groups) -> Tensor:
    """This device's shard of a leaf, on the device.

    Raises:
        RunError: SH0608, it is missing or has another shape.
    """
    shape = leaf.at_rest.local_shape(groups.coord)
    if leaf.name not in tensors:
        raise RunError("SH0608", f"the weights lack `{leaf.name}`", help=_WEIGHTS)
    shard = tensors[leaf.name].detach()
    if tuple(shard.shape) != shape:
        raise RunError(
            "SH0608",
            f"the shard of `{leaf.name}` is {list(shard.shape)}, not {list(shape)}",
            help=_WEIGHTS,
        )
    return shard.to(device=groups.device, dtype=leaf.dtype).contiguous()


def register(
    root: nn.Module,
    leaf: Leaf,
    shard: Tensor,
    groups: Groups,
    transient: Collection[str],
) -> None:
    """Put a tensor under its name, and under the other names of a tied one.

    Buffers in `transient`, under any of their names, stay out of the state dict.
    """
    tensor = sharded(shard, Sharding(leaf.at_rest, groups)) if groups.mesh.devices > 1 else shard
    value = nn.Parameter(tensor, leaf.trainable) if leaf.kind is LeafKind.PARAM else tensor
    for name in (leaf.name, *leaf.aliases):
        owner, last = owner_of(root, name)
        if isinstance(value, nn.Parameter):
            owner._parameters[last] = value
        else:
            owner._buffers[last] = value
            if name in transient or leaf.name in transient:
                owner._non_persistent_buffers_set.add(last)


def owner_of(root: nn.Module, name: str) -> tuple[nn.Module, str]:
    """The module that holds a dotted name, and the last part of the name."""
    *path, last = name.split(".")
    owner = root
    for part in path:
        child = owner._modules[part]
        assert child is not None
        owner = child
    return owner, last


def slot_of(root: nn.Module, name: str, kind: str) -> Slot:
    """Where a module keeps a tensor."""
    owner, last = owner_of(root, name)
    return (owner._parameters if kind == "param" else owner._buffers), last


def _replaced(leaf: Leaf, found: Tensor | None) -> RunError:
    what = "missing" if found is None else f"another `{type(found).__name__}`"
    shape = "" if found is None else f" of {list(found.shape)}"
    return RunError(
        "SH0613",
        f"`{leaf.name}` is {what}{shape} now, and the program runs on a tensor that lies as"
        f" {leaf.at_rest}",
        help="change its values in place (`p.copy_(new)` under `torch.no_grad()`), or change the"
        " model before it is compiled",
    )


def _untied(name: str, other: str) -> RunError:
    return RunError(
        "SH0613",
        f"`{other}` and `{name}` are no longer one tensor, and the program is made for a tied one",
        help="untie them before the model is compiled",
    )
