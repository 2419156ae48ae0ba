"""Which program answers a call: the one that was declared, or another on the same tensors.

A program is made for one state of the modules, one set of inputs with their types and shapes, and
fixed values of all other arguments. Another call gets another program, which is compiled when it is
first needed. All share the parameters and buffers, which lie at rest where they lie.
"""

from __future__ import annotations

import copy
import functools
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from shardlang.ir.layout import Layout
from shardlang.ir.leaf import LeafKind
from shardlang.runtime.agree import Agreement, Asked
from shardlang.runtime.border import cut
from shardlang.runtime.calls import (
    Argument,
    Call,
    Given,
    LoadedProgram,
    Made,
    tensor_at,
    wrong_shape,
)
from shardlang.runtime.changes import Changes, Due, steps_taken
from shardlang.runtime.contexts import refuse_contexts, refuse_tangents
from shardlang.runtime.groups import Groups
from shardlang.runtime.kept import Kept
from shardlang.runtime.replicas import (
    beyond_rounding,
    changed_apart,
    check_replicas,
    drifted,
    inputs_differ,
)
from shardlang.runtime.sharding import Sharding
from shardlang.runtime.standins import Standins
from shardlang.runtime.tables import Tables, slot_of
from shardlang.runtime.tensor import Sharded

COMPARED_CALLS = 3
"""In so many calls with plain tensors are these compared: a wrong sampler shows at once."""


class Compiler(Protocol):
    """What makes programs for calls."""

    declared: Call
    model: nn.Module

    def flatten(
        self, args: Sequence[object], kwargs: Mapping[str, object]
    ) -> tuple[dict[str, Tensor], tuple[Argument, ...]]:
        """Tensors and all other arguments of a call, by dotted name."""
        ...

    def build_inputs(
        self, flat: Mapping[str, object], args: Sequence[object], kwargs: Mapping[str, object]
    ) -> dict[str, object]:
        """Keyword arguments from dotted names, built as the call's own were."""
        ...

    def fill(self, given: object, made: object) -> None:
        """Do to the arguments of a call what the model does to them."""
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
        params = (leaf for leaf in made.program.leaves if leaf.kind is LeafKind.PARAM)
        self._params = {leaf.name: tables.slot(leaf) for leaf in params}
        speaks = not any(groups.coord.values())
        self._loaded = Kept(compiler.declared, tables.load(made), speaks)
        self._agreement, self._compared = Agreement(groups), 0
        self.changes, self._due, self._steps = Changes(self._parameters()), Due(), steps_taken()
        for name, module in self._modules.items():
            module.training = name not in compiler.declared.evaluated

    def on(self, root: nn.Module, standins: Standins) -> Variants:
        """The same programs on a copy of the module, which has tensors of its own."""
        other = copy.copy(self)
        other._tables = self._tables.on(root)
        other.standins, other._modules = standins, standins.modules()
        other._params = {n: slot_of(root, n, "param") for n in self._params}
        other._loaded = self._loaded.on(functools.partial(_moved, tables=other._tables))
        other.changes, other._due = Changes(other._parameters()), Due()
        other._steps = steps_taken()
        return other

    def _parameters(self) -> Iterator[Tensor]:
        return map(tensor_at, self._params.values())

    @property
    def evaluated(self) -> frozenset[str]:
        """The modules in evaluation mode."""
        return frozenset(n for n, module in self._modules.items() if not module.training)

    @property
    def declared(self) -> LoadedProgram:
        """The program of the declared call."""
        return self._loaded[self.compiler.declared]

    def shard(
        self, args: Sequence[object], kwargs: Mapping[str, object], strict: bool
    ) -> dict[str, object]:
        """Whole inputs with this device's shards in them, and all other arguments, by dotted name.

        `strict` asks for every input that is declared. Collective.
        """
        asked = self._agreement.check(lambda: self._to_cut(args, kwargs, strict))
        loaded = self._loaded_for(asked.call, lambda program: program.check(_on_host(asked.given)))
        tensors = {
            n: x.full_tensor() if isinstance(x, DTensor) and not _lies(x, loaded.inputs[n]) else x
            for n, x in asked.given.items()
        }
        gathered = {n for n, x in asked.given.items() if tensors[n] is not x}
        loaded.check({n: x for n, x in tensors.items() if n in gathered})
        made = {name: self._handed(name, x, loaded) for name, x in tensors.items()}
        return {**made, **{argument.name: argument.value for argument in asked.call.arguments}}

    def _to_cut(self, args: Sequence[object], kwargs: Mapping[str, object], strict: bool) -> Asked:
        """What a call of `shard` asks for on this rank; nothing of it is collective."""
        given, arguments = self.compiler.flatten(args, kwargs)
        self.check()
        call = self._call({n: tuple(x.shape) for n, x in given.items()}, given, arguments)
        self.compiler.check(call, strict)
        plain = {n: x for n, x in given.items() if not isinstance(x, DTensor)}
        lies = [*_laid_out(given), *(f"`{n}` on {x.device.type}" for n, x in plain.items())]
        if call in self._loaded:
            self._loaded[call].check(_on_host(given))
        return Asked(call, given, tuple(lies), plain)

    def _handed(self, name: str, full: Tensor, loaded: LoadedProgram) -> Tensor:
        """An input for a call: a plain tensor where it can be no shard."""
        if isinstance(full, DTensor):
            return full
        first, mine = self.declared.inputs.get(name), loaded.inputs[name]
        if mine.split or (first is not None and first.split):
            return cut(full, mine)
        return full.to(self.groups.device).contiguous()

    def choose(
        self, args: Sequence[object], kwargs: Mapping[str, object]
    ) -> tuple[LoadedProgram, Mapping[str, Tensor]]:
        """The program for a call with this device's shards, and the shards by name. Collective."""
        asked = self._agreement.check(lambda: self._to_answer(args, kwargs))
        self._compare_held(asked.changed)
        loaded = self._loaded_for(asked.call, lambda program: program.check_given(asked.given))
        if loaded.draws:
            self._agreement.check_draws()
        self._compare_plain(asked.given, loaded)
        return loaded, {name: loaded.shard(name, given) for name, given in asked.given.items()}

    def _compare_held(self, changed: int) -> None:
        """Compare parameters and buffers where devices share them, if it is time to."""
        self.changes.told()
        if not self._due.at_call(changed):
            return
        apart = beyond_rounding(self._tables.held(), self.groups)
        if apart is not None and steps_taken() == self._steps:
            raise changed_apart(*apart)
        if apart is not None:
            warnings.warn(drifted(*apart), stacklevel=2)
        self._steps = steps_taken()
        self._due.done()

    def _compare_plain(self, given: Mapping[str, Tensor], loaded: LoadedProgram) -> None:
        """Compare plain inputs of the first calls where devices share them. Collective there."""
        plain = {
            name: (x, loaded.inputs[name].layout)
            for name, x in given.items()
            if not isinstance(x, DTensor)
        }
        if plain and self._compared < COMPARED_CALLS:
            self._compared += 1
            check_replicas(plain, self.groups, inputs_differ)

    def _to_answer(self, args: Sequence[object], kwargs: Mapping[str, object]) -> Asked:
        """What a call of the module asks for on this rank; nothing of it is collective."""
        refuse_contexts(self.groups.device.type)
        tensors, arguments = self.compiler.flatten(args, kwargs)
        self.check()
        params = list(self._parameters())
        refuse_tangents(chain(tensors.values(), params))
        whole = {name: self._whole_shape(name, given) for name, given in tensors.items()}
        call = self._call(whole, tensors, arguments)
        self.compiler.check(call, strict=False)
        if call in self._loaded:
            self._loaded[call].check_given(tensors)
        frozen = (f"`{name}` frozen" for name in self._frozen())
        switched = () if torch.is_grad_enabled() else ("gradients off",)
        lines = (*frozen, *switched, *_laid_out(tensors))
        return Asked(call, tensors, lines, changed=self.changes.since(params))

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

    def check_together(self) -> None:
        """The same on all ranks together: a change on one is refused on all. Collective.

        Raises:
            RunError: SH0613.
        """
        self._agreement.together(self.check)

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
        evaluated, trained = self.evaluated, self.compiler.declared.trained
        if grad:
            found = {name: tensor_at(slot) for name, slot in self._params.items()}
            trained |= {name for name, param in found.items() if param.requires_grad}
        return Call(given, arguments, evaluated, trained)

    def _whole_shape(self, name: str, given: Tensor) -> tuple[int, ...]:
        """The shape of an input as a whole; a plain tensor is a shard of one that is split."""
        first = self.declared
        shape, sharding = tuple(given.shape), first.inputs.get(name)
        if isinstance(given, DTensor) or sharding is None or not sharding.split:
            return shape
        if shape == first.shapes[name]:
            return sharding.layout.shape
        raise wrong_shape(name, shape, first.shapes[name])

    def _loaded_for(self, call: Call, check: Callable[[LoadedProgram], None]) -> LoadedProgram:
        """The program for a call; a new one is checked, on all ranks alike. Collective for it."""
        loaded = self._loaded.find(call)
        if loaded is None:
            layouts = self._known_layouts(call)
            made = self._agreement.together(lambda: self.compiler.make(call, layouts))
            loaded = new = self._tables.load(made)
            self._agreement.together(lambda: check(new))
            self._loaded.add(call, new)
        return loaded

    def _known_layouts(self, call: Call) -> dict[str, Layout]:
        """The layouts of the inputs in a program that takes the same ones."""
        plain = [replace(given, differentiable=False) for given in call.inputs]
        for other, loaded in self._loaded.items():
            if [replace(given, differentiable=False) for given in other.inputs] == plain:
                return {name: sharding.layout for name, sharding in loaded.inputs.items()}
        return {}

    def set_mode(self, mode: bool) -> None:
        """Do to the modules' modes what the model's own `train(mode)` does."""
        after = self.compiler.modes_after(self.evaluated, mode)
        for name, module in self._modules.items():
            module.training = name not in after


def _lies(given: DTensor, sharding: Sharding) -> bool:
    """Whether an input is this device's shard already."""
    return isinstance(given, Sharded) and given.sharding.same(sharding)


def _moved(loaded: LoadedProgram, tables: Tables) -> LoadedProgram:
    kept = [
        leaf for leaf in loaded.program.leaves if leaf.kind in (LeafKind.PARAM, LeafKind.BUFFER)
    ]
    return loaded.on({leaf.name: tables.slots(leaf) for leaf in kept})


def _on_host(given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The plain tensors on the host: only their numbers are looked at."""
    return {
        name: x
        for name, x in given.items()
        if x.device.type == "cpu" and not isinstance(x, DTensor)
    }


def _laid_out(given: Mapping[str, Tensor]) -> list[str]:
    """How inputs lie that are gathered where they lie otherwise than the program takes them."""
    return [
        f"`{name}` laid out as {x.sharding.layout if isinstance(x, Sharded) else x.placements}"
        for name, x in given.items()
        if isinstance(x, DTensor)
    ]
