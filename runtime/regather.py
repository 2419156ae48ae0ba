"""Gathering stored parameters again for the backward, instead of keeping them.

What autograd would save of a gathered parameter is replaced by a note of where to gather it from:
the forward then holds no whole parameter past its last use (ZeRO-3; Rajbhandari et al., 2020). The
parameters of one bucket are gathered again in one call, when the backward first asks for one of
them, and each is held until nothing is left that would read it. The simulator of forward programs
takes the same notes. In a step program the gathers of the backward are nodes of its own.
"""

from __future__ import annotations

import functools
import operator
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from shardlang.ir.graph import reshards_of
from shardlang.runtime.collectives import Action, RunReshard, RunReshards, run_together
from shardlang.runtime.errors import RunError
from shardlang.runtime.outside import outside


class Again:
    """Parameters that one call gathers again, once for all that a backward reads of them."""

    def __init__(self, gather: Callable[[], Sequence[Tensor]]) -> None:
        self._gather = gather
        self._sources: list[weakref.ref[Source]] = []

    def source(self, name: str, shard: Tensor | Kept) -> Source:
        """The source of the next parameter, in the order in which `gather` makes them whole."""
        made = Source(name, shard, self)
        self._sources.append(weakref.ref(made))
        return made

    def gather(self) -> None:
        """Make whole all of them that something may still read. Collective."""
        with torch.no_grad():
            made = self._gather()
        for found, whole in zip(self._sources, made, strict=True):
            source = found()
            if source is not None:
                source.whole = whole


class Source:
    """Where a gathered parameter comes from: its shard, and the shard's version at the time.

    The shard is itself a note where it was gathered along another axis.
    """

    def __init__(self, name: str, shard: Tensor | Kept, together: Again) -> None:
        self.name, self.shard, self.together = name, shard, together
        self.version = shard._version if isinstance(shard, Tensor) else 0
        self.whole: Tensor | None = None

    @staticmethod
    def of(name: str, shard: Tensor | Kept, gather: Callable[[], Tensor]) -> Source:
        """The source of a parameter that `gather` makes whole by itself."""
        return Again(lambda: [gather()]).source(name, shard)

    def again(self) -> Tensor:
        """The whole parameter, as the forward had it. Collective if it is not at hand.

        Raises:
            RunError: SH0641, the shard has changed since.
        """
        if isinstance(self.shard, Tensor) and self.shard._version != self.version:
            raise RunError(
                "SH0641",
                f"`{self.name}` changed between the forward and its backward under `regather`",
                help="run the backward before the optimizer's step, or store the parameter "
                "without `regather`",
            )
        if self.whole is None:
            self.together.gather()
        assert self.whole is not None, "a source that is read is there"
        return self.whole


@dataclass(frozen=True, slots=True)
class Kept:
    """A view of a gathered parameter, as autograd saved it: a way to read the same storage."""

    source: Source
    dtype: torch.dtype
    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    conjugated: bool
    negated: bool

    @staticmethod
    def of(source: Source, view: Tensor) -> Kept:
        """The note of a view."""
        return Kept(
            source, view.dtype, tuple(view.shape), tuple(view.stride()),
            int(view.storage_offset()), view.is_conj(), view.is_neg(),
        )  # fmt: skip

    def again(self) -> Tensor:
        """Gather the parameter and take the same view of it. Collective."""
        whole = self.source.again()
        with torch.no_grad():
            view = torch.empty(0, dtype=self.dtype, device=whole.device)
            view.set_(whole.untyped_storage(), self.offset, self.size, self.stride)
            view = view.conj() if self.conjugated else view
            return view.neg() if self.negated else view


class Regather:
    """Knows which tensors are gathered parameters while the forward runs."""

    def __init__(self) -> None:
        self._gathered: dict[int, tuple[weakref.ref[Tensor], Source]] = {}

    def watch(self, reshard: RunReshard, name: str) -> WatchedReshard:
        """The reshard, with its result noted as the parameter of that name."""
        return WatchedReshard(reshard, self, name)

    def watch_all(self, reshards: RunReshards, names: Mapping[int, str]) -> WatchedReshards:
        """The reshards, with those of their results that have a name noted as such parameters."""
        return WatchedReshards(reshards, self, names)

    def note(self, source: Source, whole: Tensor) -> None:
        """Remember where a gathered parameter came from."""
        self._gathered[_address(whole)] = (weakref.ref(whole), source)

    @contextmanager
    def saving(self) -> Iterator[None]:
        """Hooks for a whole forward: what is saved of gathered parameters becomes a note.

        After it the notes alone hold what is gathered again.
        """
        self._gathered.clear()
        with self.hooks():
            yield
        self._gathered.clear()

    def hooks(self) -> AbstractContextManager[object]:
        """Hooks for a part of a forward."""
        return torch.autograd.graph.saved_tensors_hooks(self.packed, unpacked)

    def packed(self, tensor: Tensor) -> Tensor | Kept:
        """What to keep of a tensor: a note where it is of a gathered parameter."""
        if type(tensor) not in (Tensor, torch.nn.Parameter) or not tensor.numel():
            return tensor
        found = self._gathered.get(_address(tensor))
        if found is None or found[0]() is None:
            return tensor
        return Kept.of(found[1], tensor)


def _address(tensor: Tensor) -> int:
    """Where the memory of a tensor begins, 0 for one without memory of its own."""
    return tensor.untyped_storage().data_ptr() if tensor.layout is torch.strided else 0


def unpacked(saved: Tensor | Kept) -> Tensor:
    """The tensor that was packed. Collective for a note."""
    return saved.again() if isinstance(saved, Kept) else saved


class WatchedReshard:
    """A gather whose result is not to be kept for the backward."""

    __name__: str
    __qualname__: str

    def __init__(self, reshard: RunReshard, regather: Regather, name: str) -> None:
        self.reshard, self.regather, self.name = reshard, regather, name

    @outside
    def __call__(self, x: Tensor) -> Tensor:
        out = self.reshard(x)
        note_all([self.reshard.forward], self.regather, [(self.name, x, out)])
        return out


class WatchedReshards:
    """Gathers of one call, some of whose results are not to be kept for the backward."""

    __name__: str
    __qualname__: str

    def __init__(self, reshards: RunReshards, regather: Regather, names: Mapping[int, str]) -> None:
        self.reshards, self.regather, self.names = reshards, regather, names

    @outside
    def __call__(self, xs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        out = self.reshards(xs)
        forwards = [self.reshards.forwards[i] for i in self.names]
        note_all(forwards, self.regather, [(name, xs[i], out[i]) for i, name in self.names.items()])
        return out


def note_all(
    forwards: Sequence[Action], regather: Regather, made: Sequence[tuple[str, Tensor, Tensor]]
) -> None:
    """Note how to gather parameters again; `made` has names, shards and whole parameters."""
    if not torch.is_grad_enabled():
        return
    shards = [regather.packed(x.detach()) for _, x, _ in made]
    again = Again(functools.partial(_gather, forwards, shards))
    for shard, (name, x, whole) in zip(shards, made, strict=True):
        source = again.source(name, shard)
        if whole is not x:
            regather.note(source, whole)


def _gather(forwards: Sequence[Action], shards: Sequence[Tensor | Kept]) -> list[Tensor]:
    return run_together(forwards, [unpacked(shard) for shard in shards])


def parameter_of(node: fx.Node, names: Mapping[str, str]) -> str:
    """The name of the parameter that a gather makes whole; `names` are those of placeholders."""
    while node.op != "placeholder":
        source, *rest = node.args
        assert isinstance(source, fx.Node)
        if node.target is operator.getitem:
            assert isinstance(rest[0], int)
            source, _ = reshards_of(source)[rest[0]]
        node = source
    return names[node.name]
