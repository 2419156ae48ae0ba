"""Which program answers a call: the one that was declared, or another on the same tensors.

A program is made for one state of the modules, one set of inputs with their types and shapes, and
fixed values of all other arguments. Another call gets another program, which is compiled when it is
first needed. All share the parameters and buffers, which lie at rest where they lie.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from shardlang.ir.layout import Layout
from shardlang.runtime.agree import Agreement
from shardlang.runtime.calls import Argument, Call, Given, LoadedProgram, Made, tensor_at
from shardlang.runtime.contexts import refuse_contexts
from shardlang.runtime.cut import cut, layout_of
from shardlang.runtime.errors import RunError
from shardlang.runtime.groups import Groups
from shardlang.runtime.standins import Standins
from shardlang.runtime.tables import Tables, slot_of


class Compiler(Protocol):
    """What makes programs for calls."""

    declared: Call
    model: nn.Module

    def flatten(
        self, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> tuple[dict[str, Tensor], tuple[Argument, ...]]:
        """Tensors and all other arguments of a call, by dotted name."""
        ...

    def build_inputs(self, flat: Mapping[str, Any]) -> dict[str, Any]:
        """Keyword arguments from dotted names."""
        ...

    def make(self, call: Call, inputs: Mapping[str, Layout]) -> Made:
        """The program for a call, with the layouts of inputs that are given."""
        ...

    def check(self, call: Call, strict: bool) -> None:
        """Raise `RunError` for a call that no program can answer."""
        ...

    def modes_after(self, evaluated: frozenset[str], mode: bool) -> frozenset[str]:
        """The modules in evaluation mode after the model's own `train(mode)`."""
        ...


class Variants:
    """The programs of one model on this device, by the calls that they answer."""

    def __init__(
        self,
        compiler: Compiler,
        groups: Groups,
        standins: Standins,
        tables: Tables,
        made: Made,
    ) -> None:
        """Load the declared program. Collective: construct it on every rank.

        Args:
            standins: the modules that the call looks at.
            tables: the tensors that the programs share.
            made: the program for the declared call.
        """
        self.compiler, self.groups = compiler, groups
        self.standins, self._tables = standins, tables
        self._modules = standins.modules()
        params = (leaf for leaf in made.program.leaves if leaf.kind == "param")
        self._params = {leaf.name: tables.slot(leaf) for leaf in params}
        self._latest, self._evaluated = tables.load(made), compiler.declared.evaluated
        self._loaded = {compiler.declared: self._latest}
        self._agreement = Agreement(groups)
        for name, module in self._modules.items():
            module.training = name not in self._evaluated

    def on(self, root: nn.Module, standins: Standins) -> Variants:
        """The same programs on a copy of the module, which has tensors of its own."""
        other = copy.copy(self)
        other._tables = self._tables.on(root)
        other.standins, other._modules = standins, standins.modules()
        other._params = {n: slot_of(root, n, "param") for n in self._params}
        other._loaded = {call: _moved(x, other._tables) for call, x in self._loaded.items()}
        other._latest = next(other._loaded[c] for c, x in self._loaded.items() if x is self._latest)
        return other

    @property
    def declared(self) -> LoadedProgram:
        """The program of the declared call."""
        return self._loaded[self.compiler.declared]

    def shard(self, args: Sequence[Any], kwargs: Mapping[str, Any], strict: bool) -> dict[str, Any]:
        """This device's pieces of whole inputs, and all other arguments, by dotted name.

        `strict` asks for every input that is declared. Collective.
        """
        tensors, arguments = self.compiler.flatten(args, kwargs)
        self.check()
        call = self._call({n: tuple(x.shape) for n, x in tensors.items()}, tensors, arguments)
        self.compiler.check(call, strict)
        self._agreement.check(call, tensors)
        loaded = self._loaded_for(call)
        loaded.check({name: x for name, x in tensors.items() if x.device.type == "cpu"})
        pieces = {name: cut(x, loaded.layouts[name], self.groups) for name, x in tensors.items()}
        return {**pieces, **{argument.name: argument.value for argument in arguments}}

    def choose(
        self, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> tuple[LoadedProgram, Mapping[str, Tensor]]:
        """The program for a call with this device's pieces, and the pieces by name. Collective."""
        tensors, arguments = self.compiler.flatten(args, kwargs)
        if torch.compiler.is_compiling():
            return self._fitting(tensors, arguments), tensors
        self.check()
        found = (*tensors.values(), *map(tensor_at, self._params.values()))
        refuse_contexts(self.groups.device.type, found)
        whole = {name: self._whole_shape(name, piece) for name, piece in tensors.items()}
        call = self._call(whole, tensors, arguments)
        self.compiler.check(call, strict=False)
        self._agreement.check(call, frozen=self._frozen())
        loaded = self._loaded_for(call)
        if loaded.draws:
            self._agreement.check_draws()
        for name, piece in tensors.items():
            self._check_piece(name, piece, loaded)
        return loaded, tensors

    def _frozen(self) -> list[str]:
        """The parameters that get no gradient now."""
        if not torch.is_grad_enabled():
            return []
        return [name for name, slot in self._params.items() if not tensor_at(slot).requires_grad]

    def check(self) -> None:
        """Look for changes of modules and tensors that no program carries out.

        Raises:
            RunError: SH0613.
        """
        self.standins.check()
        self._tables.check()

    def _fitting(self, tensors: Mapping[str, Tensor], arguments: tuple[Any, ...]) -> LoadedProgram:
        """Under `torch.compile`: the program of the last call, which must be the right one."""
        loaded = self._latest
        same = not arguments and tensors.keys() == loaded.shapes.keys()
        for name, module in self._modules.items():
            same = same and module.training == (name not in self._evaluated)
        for name, piece in tensors.items():
            same = same and tuple(piece.shape) == loaded.shapes[name]
            same = same and piece.dtype == loaded.dtypes[name]
        if not same:
            raise RunError(
                "SH0605",
                "the call under `torch.compile` is not like the last one",
                help="cut its inputs with `shard_inputs`, outside of what is compiled",
            )
        return loaded

    def _call(
        self,
        shapes: Mapping[str, tuple[int, ...]],
        tensors: Mapping[str, Tensor],
        arguments: tuple[Argument, ...],
    ) -> Call:
        grad = torch.is_grad_enabled()
        given = tuple(
            Given(name, tensors[name].dtype, shapes[name], grad and tensors[name].requires_grad)
            for name in sorted(tensors)
        )
        evaluated = frozenset(n for n, module in self._modules.items() if not module.training)
        trained = self.compiler.declared.trained
        if grad:
            found = {name: tensor_at(slot) for name, slot in self._params.items()}
            trained |= {name for name, param in found.items() if param.requires_grad}
        return Call(given, arguments, evaluated, trained)

    def _whole_shape(self, name: str, piece: Tensor) -> tuple[int, ...]:
        """The shape of the input that a piece belongs to."""
        marked = layout_of(piece)
        if marked is not None:
            return marked.shape
        first = self.declared
        shape, layout = tuple(piece.shape), first.layouts.get(name)
        if layout is None or all(axis.size == 1 for axis in layout.sharded):
            return shape
        if shape == first.shapes[name]:
            return layout.shape
        raise _wrong_shape(name, shape, first.shapes[name])

    def _check_piece(self, name: str, piece: Tensor, loaded: LoadedProgram) -> None:
        marked, layout = layout_of(piece), loaded.layouts[name].unlabelled()
        if tuple(piece.shape) != loaded.shapes[name] or marked not in (None, layout):
            raise _wrong_shape(name, tuple(piece.shape), loaded.shapes[name])

    def _loaded_for(self, call: Call) -> LoadedProgram:
        if call not in self._loaded:
            made = self.compiler.make(call, self._known_layouts(call))
            self._loaded[call] = self._tables.load(made)
        self._latest, self._evaluated = self._loaded[call], call.evaluated
        return self._latest

    def _known_layouts(self, call: Call) -> dict[str, Layout]:
        """The layouts of the inputs in a program that takes the same ones."""
        plain = [replace(given, differentiable=False) for given in call.inputs]
        for other, loaded in self._loaded.items():
            if [replace(given, differentiable=False) for given in other.inputs] == plain:
                return {name: layout.unlabelled() for name, layout in loaded.layouts.items()}
        return {}

    def set_mode(self, mode: bool) -> None:
        """Do to the modules' modes what the model's own `train(mode)` does."""
        before = frozenset(n for n, module in self._modules.items() if not module.training)
        after = self.compiler.modes_after(before, mode)
        for name, module in self._modules.items():
            module.training = name not in after


def _moved(loaded: LoadedProgram, tables: Tables) -> LoadedProgram:
    kept = [leaf for leaf in loaded.program.leaves if leaf.kind in ("param", "buffer")]
    return loaded.on({leaf.name: tables.slots(leaf) for leaf in kept})


def _wrong_shape(name: str, given: tuple[int, ...], wanted: tuple[int, ...]) -> RunError:
    return RunError(
        "SH0605",
        f"input `{name}` is {list(given)}, and this device's piece is {list(wanted)}",
        help="cut whole inputs with `shard_inputs`",
    )
