"""Building a model without memory, and computing single tensors of it afterwards.

A model's constructor runs on fake tensors while every operator that creates or writes a tensor
goes on a tape. Replaying the part of the tape that one parameter depends on gives that parameter's
initial value alone: no more of the model is ever allocated. Random operators are seeded by
(seed, position on the tape), so a value depends on neither the order of replay nor the mesh.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from shardlang.capture.init_ops import atomic_initializers
from shardlang.ir.arguments import Args, Kwargs, tensors_in
from shardlang.ir.compat import (
    FakeTensor,
    FakeTensorMode,
    OpOverload,
    TorchDispatchMode,
    forget_fakes,
    storage_key,
    tree_leaves,
    tree_map_only,
    unset_fake_temporarily,
)

aten = torch.ops.aten
_SMALL = 1 << 20
_EXACT_FACTORIES = {aten.arange, aten.linspace, aten.logspace, aten.scalar_tensor}
_RESIZES = {aten.resize_, aten.set_, aten.resize_as_}
_OVERWRITES = {aten.normal_, aten.uniform_, aten.zero_, aten.fill_, aten.bernoulli_}


class CannotReplayError(Exception):
    """A tensor's value does not follow from the operators on the tape."""


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a fake tensor lay when it was recorded; holding the storage keeps its key unique."""

    storage: torch.UntypedStorage
    key: int
    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    dtype: torch.dtype

    @classmethod
    def of(cls, tensor: torch.Tensor) -> _Place:
        """The present place of a tensor."""
        storage, size = tensor.untyped_storage(), tuple(tensor.size())
        offset = int(tensor.storage_offset())
        return cls(storage, storage_key(tensor), size, tensor.stride(), offset, tensor.dtype)

    def over(self, storage: torch.UntypedStorage) -> torch.Tensor:
        """A real tensor at this place in `storage`."""
        return torch.empty(0, dtype=self.dtype).set_(storage, self.offset, self.size, self.stride)


@dataclass(frozen=True, slots=True)
class _Entry:
    """One operator call that created or wrote the storages `writes`."""

    func: OpOverload
    args: Args
    kwargs: Kwargs
    outs: object
    writes: tuple[int, ...]
    reads: tuple[int, ...]
    versions: tuple[tuple[torch.Tensor, int], ...]
    overwrites: bool


class Tape(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records the operators of a constructor that runs under `fake_mode`."""

    def __init__(self, fake_mode: FakeTensorMode) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.fake_mode = fake_mode
        self._entries: list[_Entry] = []
        self._writers: dict[int, list[int]] = {}

    @contextlib.contextmanager
    def recording(self) -> Iterator[None]:
        """Run the body on fake tensors, on the tape."""
        with atomic_initializers(), self.fake_mode, self:
            yield

    def __torch_dispatch__(
        self,
        func: OpOverload,
        types: object,
        args: Args = (),
        kwargs: Kwargs | None = None,
    ) -> object:
        kwargs = kwargs or {}
        given = tensors_in((args, kwargs))
        fakes = [x for x in given if isinstance(x, FakeTensor)]
        if given and not fakes:
            return _run_for_real(func, args, kwargs)
        if _reads_data(func) or _writes_real(func, args, kwargs):
            return _run_for_real(func, *self._real(args, kwargs))
        outs: object = func(*args, **kwargs)
        forget_fakes(self.fake_mode)
        if not given and func.overloadpacket in _EXACT_FACTORIES and _is_small(outs):
            return _run_for_real(func, args, kwargs)
        self._record(func, args, kwargs, outs, given)
        return outs

    def value(self, tensor: torch.Tensor, seed: int) -> torch.Tensor:
        """The real value of a recorded tensor, in memory of its own.

        Raises `CannotReplayError` if the tape does not determine it.
        """
        if not isinstance(tensor, FakeTensor):
            return tensor.detach().clone()
        with torch.random.fork_rng(devices=[]), unset_fake_temporarily(), torch.no_grad():
            return self._evaluate(tensor, seed)

    def covers(self, tensor: torch.Tensor) -> bool:
        """Whether `value` can compute `tensor`."""
        return not isinstance(tensor, FakeTensor) or storage_key(tensor) in self._writers

    def _real(self, args: Args, kwargs: Kwargs) -> tuple[Args, Kwargs]:
        """Arguments with fake tensors computed; only values without randomness are allowed."""
        with unset_fake_temporarily(), torch.no_grad():
            computed: tuple[Args, Kwargs] = tree_map_only(
                FakeTensor, lambda t: self._evaluate(t, None), (args, kwargs)
            )
        return computed

    def _record(
        self, func: OpOverload, args: Args, kwargs: Kwargs, outs: object, given: list[torch.Tensor]
    ) -> None:
        """Put a call on the tape unless it only makes a view."""
        if any(isinstance(x, torch.Generator) for x in tree_leaves((args, kwargs))):
            raise CannotReplayError("the constructor draws from a generator of its own")
        if torch.Tag.inplace_view in func.tags:
            if func.overloadpacket in _RESIZES:
                raise CannotReplayError
            return
        read = {storage_key(t) for t in given if isinstance(t, FakeTensor)}
        written = {storage_key(t) for t in _written(func, args, kwargs)}
        writes = written | ({storage_key(t) for t in tensors_in(outs)} - read)
        if not writes:
            return
        real = tuple((t, t._version) for t in given if not isinstance(t, FakeTensor))
        full = func.overloadpacket in _OVERWRITES and _covers_storage(args[0])
        args, kwargs, outs = tree_map_only(FakeTensor, _Place.of, (args, kwargs, outs))
        entry = _Entry(func, args, kwargs, outs, tuple(writes), tuple(read), real, full)
        for key in writes:
            self._writers.setdefault(key, []).append(len(self._entries))
        self._entries.append(entry)

    def _needed(self, key: int) -> list[int]:
        """The positions of the calls that storage `key` depends on, in order."""
        needed: set[int] = set()
        seen: set[int] = set()
        pending = [key]
        while pending:
            storage = pending.pop()
            if storage in seen:
                continue
            seen.add(storage)
            if storage not in self._writers:
                raise CannotReplayError
            for position in self._writers[storage]:
                needed.add(position)
                pending.extend(self._entries[position].reads)
        return self._without_overwritten(sorted(needed), key)

    def _without_overwritten(self, order: list[int], key: int) -> list[int]:
        """Drop calls on a storage that a later call overwrites unread, except its creation."""
        if any(set(self._entries[i].writes) != {key} for i in order):
            return order
        last = max((n for n, i in enumerate(order) if self._entries[i].overwrites), default=0)
        return order[:1] + order[max(last, 1) :]

    def _evaluate(self, tensor: torch.Tensor, seed: int | None) -> torch.Tensor:
        """Replay what `tensor` depends on and return its part of the storage."""
        key = storage_key(tensor)
        storages: dict[int, torch.UntypedStorage] = {}
        for position in self._needed(key):
            self._replay(position, storages, seed)
        return _Place.of(tensor).over(storages[key])

    def _replay(
        self, position: int, storages: dict[int, torch.UntypedStorage], seed: int | None
    ) -> None:
        """Run one recorded call on real tensors."""
        entry = self._entries[position]
        if any(t._version != version for t, version in entry.versions):
            raise CannotReplayError
        if torch.Tag.nondeterministic_seeded in entry.func.tags:
            if seed is None:
                raise CannotReplayError
            torch.manual_seed(derive_seed(seed, position))

        def real(place: _Place) -> torch.Tensor:
            return place.over(storages[place.key])

        args, kwargs = tree_map_only(_Place, real, (entry.args, entry.kwargs))
        outs = tree_leaves(entry.func(*args, **kwargs))
        for place, out in zip(tree_leaves(entry.outs), outs, strict=True):
            if isinstance(place, _Place):
                storages.setdefault(place.key, _laid_out(out, place))


def derive_seed(*parts: object) -> int:
    """A 63-bit seed that depends on all `parts`."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def _run_for_real(func: OpOverload, args: Args, kwargs: Kwargs) -> object:
    """Call an operator on real tensors from inside a fake mode."""
    with unset_fake_temporarily():
        made: object = func(*args, **kwargs)
    return made


def _reads_data(func: OpOverload) -> bool:
    """Whether the result's kind or shape depends on the operands' data."""
    tags = (torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape)
    return any(tag in func.tags for tag in tags)


def _written(func: OpOverload, args: Args, kwargs: Kwargs) -> list[torch.Tensor]:
    """The tensors among the operands that the operator writes."""
    written = []
    for i, argument in enumerate(func._schema.arguments):
        if argument.alias_info is None or not argument.alias_info.is_write:
            continue
        value = args[i] if i < len(args) else kwargs.get(argument.name)
        written += tensors_in(value)
    return written


def _writes_real(func: OpOverload, args: Args, kwargs: Kwargs) -> bool:
    """Whether the operator writes a tensor that holds data."""
    return any(not isinstance(t, FakeTensor) for t in _written(func, args, kwargs))


def _is_small(made: object) -> bool:
    return isinstance(made, torch.Tensor) and made.numel() <= _SMALL


def _covers_storage(tensor: object) -> bool:
    """Whether a tensor is all of its storage."""
    if not isinstance(tensor, torch.Tensor):
        return False
    return tensor.numel() * tensor.element_size() == tensor.untyped_storage().nbytes()


def _laid_out(real: torch.Tensor, place: _Place) -> torch.UntypedStorage:
    """The storage of a freshly made tensor, laid out as its fake was."""
    if real.stride() == place.stride and real.storage_offset() == place.offset:
        return real.untyped_storage()
    if place.offset != 0:
        raise CannotReplayError
    laid = torch.empty_strided(place.size, place.stride, dtype=real.dtype)
    return laid.copy_(real).untyped_storage()
