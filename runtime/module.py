"""The sharded model as an ordinary module: local pieces under the model's own names."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from shardlang.ir.pieces import piece_of
from shardlang.ir.program import LeafPlacement, LocalProgram
from shardlang.runtime.boundary import from_dtensor, to_dtensor
from shardlang.runtime.checks import check_same_program
from shardlang.runtime.errors import RunError
from shardlang.runtime.executor import load_program
from shardlang.runtime.groups import Groups
from shardlang.runtime.regather import Regather
from shardlang.runtime.whole import whole, whole_on_first


class CallConvention(Protocol):
    """How the model is called: its own arguments in, its own structure out."""

    def bind_call(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Tensor]:
        """Input name to tensor."""
        ...

    def build_inputs(self, flat: Mapping[str, Tensor]) -> dict[str, Any]:
        """Keyword arguments from input names."""
        ...

    def rebuild_output(self, values: Sequence[Any]) -> Any:
        """The model's output around its tensors."""
        ...


class Flat:
    """The plain convention: inputs by keyword, outputs in a dict, both by name."""

    def __init__(self, program: LocalProgram) -> None:
        self._inputs = [leaf.name for leaf in program.leaves if leaf.kind == "input"]
        self._outputs = [r.name for r in program.results if r.kind == "output"]

    def bind_call(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Tensor]:
        """Positional arguments in the order of the inputs."""
        return {**dict(zip(self._inputs, args, strict=False)), **kwargs}

    def build_inputs(self, flat: Mapping[str, Tensor]) -> dict[str, Any]:
        """The names as they are."""
        return dict(flat)

    def rebuild_output(self, values: Sequence[Any]) -> dict[str, Any]:
        """Outputs by name."""
        return dict(zip(self._outputs, values, strict=True))


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
        check_same_program(program, groups)
        self.program, self.groups = program, groups
        self._convention = call or Flat(program)
        self._inputs = [leaf for leaf in program.leaves if leaf.kind == "input"]
        self._outputs = [i for i, r in enumerate(program.results) if r.kind == "output"]
        for leaf in program.leaves:
            if leaf.kind != "input":
                self._register(leaf, tensors, transient)
        self._fetch = [_fetcher(self, leaf) for leaf in program.leaves]
        self._mutations = [
            (i, r.name) for i, r in enumerate(program.results) if r.kind == "mutation"
        ]
        self._shapes = {leaf.name: leaf.layout.local_shape(groups.coord) for leaf in self._inputs}
        again = any(node.meta.get("regather") for node in program.graph.nodes)
        self._regather = Regather() if again else None
        self._run = load_program(program, groups, self._regather)

    def _register(
        self, leaf: LeafPlacement, tensors: Mapping[str, Tensor], transient: Collection[str]
    ) -> None:
        """Put a tensor under its name, and under the other names of a tied one."""
        piece = _checked(leaf, tensors, self.groups)
        constant = leaf.kind == "constant"
        value = nn.Parameter(piece, leaf.trainable) if leaf.kind == "param" else piece
        for name in (leaf.name, *leaf.aliases):
            owner, last = _owner(self, name, hidden=constant)
            if isinstance(value, nn.Parameter):
                owner.register_parameter(last, value)
            else:
                kept = not constant and not transient_name(name, leaf, transient)
                owner.register_buffer(last, value, persistent=kept)

    def resized(
        self, program: LocalProgram, call: CallConvention, constants: Mapping[str, Tensor]
    ) -> ShardedModule:
        """A module that runs another program on the same parameters and buffers. Collective.

        Args:
            constants: this device's pieces of the other program's constants.

        Raises:
            RunError: SH0605, the other program has them elsewhere.
        """
        mine = {leaf.name: leaf.layout for leaf in self.program.leaves}
        kept = [leaf for leaf in program.leaves if leaf.kind in ("param", "buffer")]
        for leaf in kept:
            if leaf.name not in mine or mine[leaf.name] != leaf.layout:
                raise RunError("SH0605", f"`{leaf.name}` lies elsewhere for a batch of this size")
        held = {leaf.name: _held(self, leaf) for leaf in kept}
        other = ShardedModule(program, self.groups, {**held, **constants}, call, constants)
        for leaf in kept:
            for name in (leaf.name, *leaf.aliases):
                owner, last = _owner(other, name)
                _table(owner, leaf)[last] = held[leaf.name]
        return other

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the model with this device's pieces of its inputs."""
        results = self._call_program(self._convention.bind_call(args, kwargs))
        return self._convention.rebuild_output([results[i] for i in self._outputs])

    def named_outputs(self, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """This device's pieces of the outputs by name, from its pieces of the inputs by name."""
        results = self._call_program(given)
        return {self.program.results[i].name: results[i] for i in self._outputs}

    def _call_program(self, given: Mapping[str, Tensor]) -> Sequence[Tensor]:
        self._check_inputs(given)
        leaves = [given[key] if source is None else source[key] for source, key in self._fetch]
        with self._regather.saving() if self._regather is not None else nullcontext():
            results: Sequence[Tensor] = self._run(*leaves)
        if self._mutations:
            self._write_back(results)
        return results

    def _check_inputs(self, given: Mapping[str, Tensor]) -> None:
        for name, shape in self._shapes.items():
            if name not in given:
                raise RunError(
                    "SH0605",
                    f"the call lacks the input `{name}`",
                    help="pass every input that the spec declares",
                )
            if given[name].shape != shape:
                raise _wrong_shape(name, tuple(given[name].shape), shape)

    @torch.no_grad()
    def _write_back(self, results: Sequence[Tensor]) -> None:
        for place, name in self._mutations:
            self.get_buffer(name).copy_(results[place])

    def shard_inputs(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """This device's pieces of whole inputs, as keyword arguments for a call."""
        given = self._convention.bind_call(args, kwargs)
        return self._convention.build_inputs(self.input_pieces(given))

    def input_pieces(self, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """This device's pieces of whole inputs, both by name."""
        at, device = self.groups.coord, self.groups.device
        return {
            leaf.name: piece_of(given[leaf.name], leaf.layout, at).to(device).contiguous()
            for leaf in self._inputs
        }

    def placements(self) -> Iterator[tuple[LeafPlacement, Tensor]]:
        """Every tensor of the state dict once, with how it lies."""
        kept = self.state_dict(keep_vars=True)
        for leaf in self.program.leaves:
            if leaf.kind in ("param", "buffer") and leaf.name in kept:
                yield leaf, kept[leaf.name]

    @torch.no_grad()
    def whole_tensors(self) -> Iterator[tuple[LeafPlacement, Tensor | None]]:
        """Every tensor of the state dict whole, on rank 0 alone, one at a time. Collective."""
        for leaf, piece in self.placements():
            yield leaf, whole_on_first(piece.detach(), leaf.layout, self.groups)

    @torch.no_grad()
    def full_state_dict(self) -> dict[str, Tensor]:
        """A copy of the plain model's state dict, whole on every device. Collective."""
        full: dict[str, Tensor] = {}
        for leaf, piece in self.placements():
            value = whole(piece.detach(), leaf.layout, self.groups)
            value = value.clone() if value.data_ptr() == piece.data_ptr() else value
            full.update(dict.fromkeys((leaf.name, *leaf.aliases), value))
        return full

    @torch.no_grad()
    def load_full_state_dict(self, full: Mapping[str, Tensor]) -> None:
        """Take this device's pieces of a plain model's state dict.

        Raises:
            RunError: SH0608, a tensor is missing or has another shape.
        """
        for leaf, piece in self.placements():
            value = next((full[n] for n in (leaf.name, *leaf.aliases) if n in full), None)
            if value is None or tuple(value.shape) != leaf.layout.shape:
                found = "missing" if value is None else f"of shape {list(value.shape)}"
                expected = list(leaf.layout.shape)
                raise RunError(
                    "SH0608",
                    f"`{leaf.name}` is {found}; it should be {expected}",
                    help="give the state dict of the plain model, under its own names",
                )
            piece.copy_(piece_of(value, leaf.layout, self.groups.coord))

    def dtensor_state_dict(self) -> dict[str, DTensor]:
        """The state dict as DTensors, for `torch.distributed.checkpoint`. Collective.

        They share the parameters' memory where a DTensor can say the layout; call
        `load_dtensor_state_dict` after loading into them.
        """
        pairs = self.placements()
        return {leaf.name: to_dtensor(x, leaf.layout, self.groups) for leaf, x in pairs}

    @torch.no_grad()
    def load_dtensor_state_dict(self, given: Mapping[str, DTensor]) -> None:
        """Take over the values of a state dict that `dtensor_state_dict` made."""
        for leaf, piece in self.placements():
            value = from_dtensor(given[leaf.name], leaf.layout, self.groups)
            if value.data_ptr() != piece.data_ptr():
                piece.copy_(value)


_CONSTANTS = "_constants"


def transient_name(name: str, leaf: LeafPlacement, transient: Collection[str]) -> bool:
    """Whether a buffer stays out of the state dict, under any of its names."""
    return name in transient or leaf.name in transient


def _owner(root: nn.Module, name: str, hidden: bool = False) -> tuple[nn.Module, str]:
    """The module that holds a dotted name, made if need be, and the last part of the name."""
    if hidden:
        name = f"{_CONSTANTS}.{name.replace('.', '_')}"
    *path, last = name.split(".")
    owner = root
    for part in path:
        if part not in owner._modules:
            owner.add_module(part, nn.Module())
        child = owner._modules[part]
        assert child is not None
        owner = child
    return owner, last


def _fetcher(root: nn.Module, leaf: LeafPlacement) -> tuple[Mapping[str, Any] | None, str]:
    """Where the program's argument is found at each call: a table of a module, or the call."""
    if leaf.kind == "input":
        return None, leaf.name
    owner, last = _owner(root, leaf.name, hidden=leaf.kind == "constant")
    return _table(owner, leaf), last


def _table(owner: nn.Module, leaf: LeafPlacement) -> dict[str, Any]:
    """Where a module keeps tensors of a leaf's kind."""
    return owner._parameters if leaf.kind == "param" else owner._buffers


def _held(root: nn.Module, leaf: LeafPlacement) -> Tensor:
    """The tensor of a parameter or buffer."""
    owner, last = _owner(root, leaf.name)
    found: Tensor = _table(owner, leaf)[last]
    return found


_WEIGHTS = "give every parameter's and buffer's piece, cut as the program's leaves lie"


def _checked(leaf: LeafPlacement, tensors: Mapping[str, Tensor], groups: Groups) -> Tensor:
    """This device's piece of a leaf, on the device."""
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


def _wrong_shape(name: str, given: tuple[int, ...], wanted: tuple[int, ...]) -> RunError:
    return RunError(
        "SH0605",
        f"input `{name}` is {list(given)}, and this device's piece is {list(wanted)}",
        help="cut whole inputs with `shard_inputs`",
    )
