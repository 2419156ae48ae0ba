"""Regions that are compiled: one for each text and way in which its inputs lie in memory."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor, fx
from torch.multiprocessing.reductions import StorageWeakRef

from shardlang.ir.compat import Backend, compile_graph, gives_new_memory
from shardlang.runtime.errors import RunError

Run = Callable[[list[Tensor]], Sequence[Tensor]]

Lying: TypeAlias = StorageWeakRef
"""Which memory a tensor lies in; it keeps none of it, yet no other has the name meanwhile."""


class Memory(NamedTuple):
    """The memory of a result, as the ops say.

    Attributes:
        place: results of one place may share memory. A place that counts inputs is that of an
            input, and may be shared with it; the others come behind.
        own: whether an op makes it and shares it with none of its operands.
    """

    place: int
    own: bool


@dataclass(frozen=True, slots=True, eq=False)
class Region:
    """Ops that are compiled together: a graph that takes one list and gives a tuple.

    Attributes:
        held: the objects to which its `get_attr` nodes refer, by name.
        memory: in whose memory each result lies.
    """

    graph: fx.Graph
    held: Mapping[str, object]
    memory: tuple[Memory, ...]

    def text(self) -> tuple[object, ...]:
        """Equal for regions that compute the same, whatever their values are called."""
        numbers = {node: f"%{i}" for i, node in enumerate(self.graph.nodes)}
        return tuple(self._said(node, numbers) for node in self.graph.nodes)

    def _said(self, node: fx.Node, numbers: Mapping[fx.Node, str]) -> tuple[object, ...]:
        if node.op == "get_attr":
            return node.op, repr(self.held[str(node.target)])
        target = node.target if callable(node.target) else node.op
        args = fx.map_arg((node.args, node.kwargs), lambda n: _Number(numbers[n]))
        return target, repr(args)

    def module(self) -> fx.GraphModule:
        """A module of its own, which a backend may change."""
        graph = fx.Graph()
        graph.output(graph.graph_copy(self.graph, {}))
        return fx.GraphModule(dict(self.held), graph, "Region")


class _Number(str):
    """A value in a text."""

    def __repr__(self) -> str:
        return str(self)


class Regions:
    """What compiles regions by one backend, and remembers them.

    Attributes:
        lasting: whether what a call gives is left alone by later calls.
        compiled: how many have been compiled.
        sites: how many times regions stand in programs.
        failure: why a region could not be compiled; it is run op by op.
    """

    def __init__(self, backend: Backend) -> None:
        self.backend, self.lasting = backend, gives_new_memory(backend)
        self.compiled = self.sites = 0
        self.failure: RunError | None = None
        self._known: dict[tuple[object, ...], Region] = {}
        self._runs: dict[tuple[object, ...], Run] = {}

    def site(self, region: Region, checked: Sequence[int]) -> Site:
        """A place where a region stands; the inputs in `checked` may lie otherwise in a call."""
        self.sites += 1
        text = region.text()
        return Site(self, self._known.setdefault(text, region), text, checked)

    def run_of(self, region: Region, text: tuple[object, ...], values: Sequence[Tensor]) -> Run:
        """The compiled region for inputs that lie as these do."""
        key = (text, tuple(map(_lies, values)))
        if key not in self._runs:
            self._runs[key] = self._compile(region, values)
            self.compiled += 1
        return self._runs[key]

    def _compile(self, region: Region, values: Sequence[Tensor]) -> Run:
        try:
            return compile_graph(self.backend, region.module(), list(values))
        except Exception as error:
            reason = next(itertools.chain(str(error).strip().splitlines(), [""]))
            self.failure = RunError(
                "SH0644",
                f"a part of the step cannot be compiled: {type(error).__name__}: {reason}",
                help="load the program without `compile`; inductor asks for a C++ compiler on a"
                " CPU, and for Triton on a GPU",
            )
            self.failure.__cause__ = error
            return region.module()


def _lies(x: Tensor) -> tuple[object, ...]:
    return x.dtype, x.device, tuple(x.shape), x.stride()


class Site:
    """A place in a program where a region stands: compiled at the first call."""

    __slots__ = ("_checked", "_copied", "_region", "_regions", "_run", "_strides", "_text")

    def __init__(
        self, regions: Regions, region: Region, text: tuple[object, ...], checked: Sequence[int]
    ) -> None:
        self._regions, self._region, self._text = regions, region, text
        self._checked = checked
        self._strides: list[tuple[int, tuple[int, ...]]] = []
        self._run: Run | None = None
        self._copied: list[int] = []

    def __call__(self, values: list[Tensor]) -> Sequence[Tensor]:
        """What the region gives; it empties the list."""
        if self._run is None:
            return self._first(values)
        for place, stride in self._strides:
            if values[place].stride() != stride:
                values[place] = _laid_out(values[place], stride)
        return self._apart(self._run(values))

    def _first(self, values: list[Tensor]) -> Sequence[Tensor]:
        """Compile it, run it, and see which results share memory that the ops do not share."""
        self._run = self._regions.run_of(self._region, self._text, values)
        self._strides = [(place, values[place].stride()) for place in self._checked]
        lying = list(map(_storage, values))
        made = self._run(values)
        self._copied = _shared(lying, made, self._region.memory)
        return self._apart(made)

    def _apart(self, made: Sequence[Tensor]) -> Sequence[Tensor]:
        """The results, each in memory of its own where its op says so."""
        if not self._copied:
            return made
        apart = list(made)
        for place in self._copied:
            apart[place] = apart[place].clone()
        return apart


def _shared(inputs: Sequence[Lying], made: Sequence[Tensor], memory: Sequence[Memory]) -> list[int]:
    """The places of results that are to have memory of their own, and lie in that of others.

    Where they are compiled, equal ops give one tensor, and an op that changes nothing gives its
    operand.
    """
    there: dict[Lying, set[int]] = {}
    for place, storage in enumerate(inputs):
        there.setdefault(storage, set()).add(place)
    found = []
    for i, (x, lies) in enumerate(zip(made, memory, strict=True)):
        sharing = there.setdefault(_storage(x), {lies.place})
        if lies.place not in sharing:
            sharing.add(lies.place)
            found += [i] if lies.own else []
    return found


def _storage(x: Tensor) -> Lying:
    return StorageWeakRef(x.untyped_storage())  # type: ignore[no-untyped-call]


def _laid_out(x: Tensor, stride: tuple[int, ...]) -> Tensor:
    """A copy that lies in memory as the region was compiled for."""
    made = torch.empty_strided(x.shape, stride, dtype=x.dtype, device=x.device)
    return made.copy_(x)
