"""A call of the model as the runtime sees it, and a program on this device that answers it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx
from torch.distributed.tensor import DTensor

from shardlang.ir.leaf import Leaf, LeafKind, ResultKind
from shardlang.ir.node import info
from shardlang.ir.printed_type import dtype_name
from shardlang.ir.program import LocalProgram, apply_reshard, nodes_of_results
from shardlang.ir.step import UpdateProgram
from shardlang.runtime.border import Leaving, taken
from shardlang.runtime.errors import RunError
from shardlang.runtime.groups import Groups
from shardlang.runtime.region import Regions
from shardlang.runtime.sharding import Sharding
from shardlang.runtime.stepped import Stepped, StepWriter
from shardlang.runtime.tensor import like, local
from shardlang.runtime.written import write_all

Slot: TypeAlias = "tuple[dict[str, Any], str]"
"""A table that holds a tensor, and the tensor's name in it."""


def tensor_at(slot: Slot) -> Tensor:
    """What a slot holds."""
    table, key = slot
    found: Tensor = table[key]
    return found


@dataclass(frozen=True, slots=True)
class Given:
    """An input of a call: its name, and its type and shape as a whole."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    differentiable: bool = False

    def __str__(self) -> str:
        """`x : f32[8, 4]`, and a mark where it gets a gradient."""
        gradient = ", differentiable" if self.differentiable else ""
        return f"{self.name} : {dtype_name(self.dtype)}{list(self.shape)}{gradient}"


@dataclass(frozen=True, slots=True)
class Argument:
    """A Python argument of a call; two are the same if their text and kind are."""

    name: str
    text: str
    value: object = field(compare=False)

    def __str__(self) -> str:
        """`weight = 3.0`."""
        return f"{self.name} = {self.text}"


@dataclass(frozen=True, slots=True)
class Call:
    """What a program is made for: calls that differ in any of this need another one.

    Attributes:
        inputs: the tensors, in the order of their names.
        arguments: what is passed beside tensors, without what the model's defaults say too.
        evaluated: the modules in evaluation mode.
        trained: the parameters that get a gradient.
    """

    inputs: tuple[Given, ...]
    arguments: tuple[Argument, ...] = ()
    evaluated: frozenset[str] = frozenset()
    trained: frozenset[str] = frozenset()

    def lines(self) -> list[str]:
        """The call in words, the same on every device."""
        return [
            *map(str, self.inputs),
            *map(str, self.arguments),
            *(f"{_part(name)} in evaluation mode" for name in sorted(self.evaluated)),
            *(f"`{name}` trained" for name in sorted(self.trained)),
        ]

    def __str__(self) -> str:
        """Inputs and arguments alone: `x : f32[8, 4], weight = 3.0`."""
        return ", ".join(map(str, (*self.inputs, *self.arguments)))


def _part(name: str) -> str:
    return f"`{name}`" if name else "the model"


def _takes_all(_: Mapping[str, Tensor]) -> None:
    return None


@dataclass(frozen=True, slots=True)
class Made:
    """A program for a call, before it is loaded.

    Attributes:
        write: writes the step program.
        update: writes what is gathered after an update of some parameters, by name.
        rebuild: puts the model's own output around the program's.
        constants: whole values of its constants and of the buffers outside the state dict.
        replaced: the buffers that the model replaces by new tensors.
        check: raises `RunError` for whole inputs on the host that hold what the model cannot take.
        whole: whether each device can run all of it; one of a pipeline holds its stages alone.
    """

    program: LocalProgram
    write: StepWriter
    update: Callable[[Collection[str]], UpdateProgram]
    rebuild: Callable[[Sequence[object]], object]
    constants: Mapping[str, Tensor]
    replaced: frozenset[str] = frozenset()
    check: Callable[[Mapping[str, Tensor]], None] = _takes_all
    whole: bool = True


class LoadedProgram:
    """A program on this device; `slots` says where each leaf that is not an input is found."""

    def __init__(self, made: Made, groups: Groups, slots: Mapping[str, list[Slot]]) -> None:
        """Load the program. Collective: construct it on every rank.

        Args:
            slots: a tensor's own place first, then those of its other names.
        """
        program = made.program
        self.program, self.rebuild, self.check = program, made.rebuild, made.check
        self._whole = made.whole
        self._slots, self._replaced, self._device = slots, made.replaced, groups.device
        inputs = [leaf for leaf in program.leaves if leaf.kind is LeafKind.INPUT]
        self.inputs = {leaf.name: Sharding(leaf.layout.unlabelled(), groups) for leaf in inputs}
        self.dtypes = {leaf.name: leaf.dtype for leaf in inputs}
        self.shapes = {leaf.name: leaf.layout.local_shape(groups.coord) for leaf in inputs}
        lies = {
            i: Sharding(r.layout.unlabelled(), groups)
            for i, r in enumerate(program.results)
            if r.kind is ResultKind.OUTPUT
        }
        self._outputs = {i: sharding if sharding.split else None for i, sharding in lies.items()}
        self._within = _used_within(program) if groups.mesh.devices > 1 else {}
        self._mutations = [
            (i, r.name) for i, r in enumerate(program.results) if r.kind is ResultKind.MUTATION
        ]
        self.draws = any(info(node).random for node in program.graph.nodes)
        self._find_tensors()
        self._groups, self._write, self.update = groups, made.write, made.update
        self._stepped: dict[tuple[frozenset[str], Regions | None], Stepped] = {}

    def __call__(self, given: Mapping[str, Tensor], regions: Regions | None = None) -> object:
        """The model's output from this device's shards of its inputs, by name.

        A tensor in it that an axis splits is whole to those who use it.

        Args:
            regions: what compiles the program; None to run it op by op.
        """
        results = self._results(given, regions)
        leaving = Leaving(self._within)
        return self.rebuild(
            [leaving.around(i, results[i], sharding) for i, sharding in self._outputs.items()]
        )

    def check_given(self, given: Mapping[str, Tensor]) -> None:
        """Look for inputs and tensors of the module that this program cannot run on.

        Raises:
            RunError: SH0605, an input has not its shard's size; SH0613, a tensor of the module has
                another dtype or device.
        """
        for name, x in given.items():
            if not isinstance(x, DTensor) and tuple(x.shape) != self.shapes[name]:
                raise wrong_shape(name, tuple(x.shape), self.shapes[name])
        device = self._device
        for leaf, dtype, (table, key) in self._places:
            held = table[key]
            if held.dtype is not dtype or held.device != device:
                raise _converted(leaf, held, device)

    def _find_tensors(self) -> None:
        """Where the leaves are found in a call: inputs by name, all others in their places."""
        slots = {name: slots[0] for name, slots in self._slots.items()}
        leaves = self.program.leaves
        self._sources = [(leaf.name, slots.get(leaf.name)) for leaf in leaves]
        self._places = [(x, x.dtype, slots[x.name]) for x in leaves if x.name in slots]

    def shard(self, name: str, given: Tensor) -> Tensor:
        """This device's shard of an input; cut anew, collectively, where it lies otherwise."""
        return taken(given, self.inputs[name]) if isinstance(given, DTensor) else given

    def on(self, slots: Mapping[str, list[Slot]]) -> LoadedProgram:
        """The same program on other tensors."""
        other = copy.copy(self)
        other._slots = {**self._slots, **slots}
        other._find_tensors()
        return other

    def named_outputs(
        self, given: Mapping[str, Tensor], regions: Regions | None = None
    ) -> dict[str, Tensor]:
        """This device's shards of the outputs by name, from its shards of the inputs by name."""
        results = self._results(given, regions)
        return {self.program.results[i].name: results[i] for i in self._outputs}

    def _results(self, given: Mapping[str, Tensor], regions: Regions | None) -> Sequence[Tensor]:
        """The results of the program; their gradients lead to the leaves that want one."""
        if not self._whole:
            raise _in_stages()
        leaves = self.leaves(given)
        trained = frozenset[str]()
        if torch.is_grad_enabled():
            pairs = zip(self.program.leaves, leaves, strict=True)
            trained = frozenset(leaf.name for leaf, x in pairs if x.requires_grad)
        key = trained, regions
        if key not in self._stepped:
            stepped = Stepped(self.program, self._groups, trained, self._write, regions)
            self._stepped[key] = stepped
        made: list[Tensor] = []
        try:
            return self._stepped[key](leaves, made)
        finally:
            if made:
                self._write_back(made)

    def leaves(self, given: Mapping[str, Tensor]) -> list[Tensor]:
        """The leaves: this device's shards of inputs, and the tensors of the module."""
        return [given[name] if slot is None else slot[0][slot[1]] for name, slot in self._sources]

    @torch.no_grad()
    def _write_back(self, results: Sequence[Tensor]) -> None:
        """Write what the model changes in place, replace what it replaces: autograd may hold it."""
        write_all(
            (local(tensor_at(self._slots[name][0])), results[place])
            for place, name in self._mutations
            if name not in self._replaced
        )
        for place, name in self._mutations:
            for table, key in self._slots[name] if name in self._replaced else ():
                table[key] = like(table[key], results[place].detach())


def _used_within(program: LocalProgram) -> dict[int, str]:
    """The names of the outputs from which others with gradients are computed, by place."""
    made = nodes_of_results(program)
    outputs = [i for i, r in enumerate(program.results) if r.kind is ResultKind.OUTPUT]
    ends = {made[i] for i in outputs if program.results[i].dtype.is_floating_point}
    return {i: program.results[i].name for i in outputs if _reaches(made[i], ends)}


def _reaches(start: fx.Node, ends: set[fx.Node]) -> bool:
    """Whether a value, as it was before it was laid out as an output, reaches other ones."""
    ends = ends - {start}
    while start.target is apply_reshard:
        start = start.all_input_nodes[0]
    seen, todo = {start}, [start]
    while todo:
        users = todo.pop().users.keys() - seen
        if users & ends:
            return True
        seen |= users
        todo += users
    return False


def _in_stages() -> RunError:
    return RunError(
        "SH0645",
        "a model in the stages of a pipeline cannot be called: each device holds its stages alone",
        help="train it with `program.step(batch)` or `program.trainer()`, which evaluates too, or"
        " leave `pipeline` out",
    )


def _converted(leaf: Leaf, held: Tensor, device: torch.device) -> RunError:
    mine, found = dtype_name(leaf.dtype), dtype_name(held.dtype)
    if held.dtype == leaf.dtype:
        mine, found = str(device), str(held.device)
    return RunError(
        "SH0613",
        f"`{leaf.name}` is {found} now, and the program is made for {mine}",
        help="convert the model before it is compiled, and choose the device in `load`",
    )


def wrong_shape(name: str, given: tuple[int, ...], wanted: tuple[int, ...]) -> RunError:
    """The error of a plain input that is not a shard of this device."""
    return RunError(
        "SH0605",
        f"input `{name}` is {list(given)}, and this device's shard is {list(wanted)}",
        help="cut whole inputs with `shard_inputs`",
    )
