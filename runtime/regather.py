"""Gathering a stored parameter again for the backward, instead of keeping it.

What autograd would save of a gathered parameter is replaced by a note of where to gather it from:
the forward then holds no whole parameter past its last use (ZeRO-3; Rajbhandari et al., 2020). The
simulator takes the same notes.
"""

from __future__ import annotations

import functools
import operator
import weakref
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from shardlang.ir.graph import reshards_of
from shardlang.runtime.collectives import RunReshard
from shardlang.runtime.errors import RunError
from shardlang.runtime.outside import outside


@dataclass(frozen=True, slots=True)
class Source:
    """Where a gathered parameter comes from: its shard, and the shard's version at the time.

    The shard is itself a note where it was gathered along another axis.
    """

    name: str
    shard: Tensor | Kept
    version: int
    gather: Callable[[], Tensor]

    @staticmethod
    def of(name: str, shard: Tensor | Kept, gather: Callable[[], Tensor]) -> Source:
        """The source of a parameter of that name; `gather` makes it whole again."""
        version = shard._version if isinstance(shard, Tensor) else 0
        return Source(name, shard, version, gather)

    def again(self) -> Tensor:
        """The whole parameter, as the forward had it. Collective.

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
        with torch.no_grad():
            return self.gather()


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
        """The reshard, with its results noted as the parameter of that name."""
        return WatchedReshard(reshard, self, name)

    def note(self, source: Source, whole: Tensor) -> None:
        """Remember where a gathered parameter came from."""
        self._gathered[_address(whole)] = (weakref.ref(whole), source)

    def saving(self) -> AbstractContextManager[object]:
        """Hooks for a whole forward: what is saved of gathered parameters becomes a note."""
        self._gathered.clear()
        return self.hooks()

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
        if out is not x and torch.is_grad_enabled():
            shard = self.regather.packed(x.detach())
            again = functools.partial(_gather, self.reshard.forward, shard)
            self.regather.note(Source.of(self.name, shard, again), out)
        return out


def _gather(forward: Callable[[Tensor], Tensor], shard: Tensor | Kept) -> Tensor:
    return forward(unpacked(shard))


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
