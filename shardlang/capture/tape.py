"""Building a model without memory, and computing single tensors of it afterwards.

A model's constructor runs on fake tensors while every operator that creates or writes a tensor
goes on a tape. Replaying the part of the tape that one parameter depends on gives that parameter's
initial value alone: no more of the model is ever allocated. Every random operator draws what it
draws in the constructor under the same seed (see `Draws`), so a value is the constructor's own and
depends on neither the order of replay nor the mesh.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from shardlang.capture.draws import Draws
from shardlang.capture.init_ops import TRUNC_NORMAL_, atomic_initializers
from shardlang.capture.recorded import CannotReplayError, Entry, Place, default_type, laid_out
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
_DRAWS_INTO = {
    aten.normal_, aten.uniform_, aten.bernoulli_, aten.exponential_, aten.cauchy_,
    aten.log_normal_, aten.geometric_, aten.random_, TRUNC_NORMAL_,
}  # fmt: skip
_OVERWRITES = _DRAWS_INTO | {aten.zero_, aten.fill_}


class Tape(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records the operators of a constructor that runs under `fake_mode`."""

    def __init__(self, fake_mode: FakeTensorMode) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.fake_mode = fake_mode
        self._entries: list[Entry] = []
        self._writers: dict[int, list[int]] = {}
        self._random: list[int] = []
        self._draws: Draws | None = None

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
        if (given and not fakes) or _reads_data(func) or _writes_real(func, args, kwargs):
            if _is_random(func) and not _own_generator(args, kwargs):
                raise CannotReplayError("the constructor draws into a tensor that holds data")
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
        if self._draws is None or self._draws.seed != seed:
            self._draws = Draws(seed, self._random, self._pass_by)
        with torch.random.fork_rng(devices=[]), unset_fake_temporarily(), torch.no_grad():
            return self._evaluate(tensor, self._draws)

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
        if _own_generator(args, kwargs):
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
        args, kwargs, outs = tree_map_only(FakeTensor, Place.of, (args, kwargs, outs))
        kept = (func, args, kwargs, outs, tuple(writes), tuple(read), real, full)
        entry = Entry(*kept, torch.get_default_dtype())
        for key in writes:
            self._writers.setdefault(key, []).append(len(self._entries))
        if _is_random(func):
            self._random.append(len(self._entries))
        self._entries.append(entry)

    def _needed(self, *keys: int, before: int | None = None) -> list[int]:
        """The positions of the calls that storages depend on, in order; of those `before` one."""
        needed: set[int] = set()
        seen: set[int] = set()
        pending = list(keys)
        while pending:
            storage = pending.pop()
            if storage in seen:
                continue
            seen.add(storage)
            if storage not in self._writers:
                raise CannotReplayError
            for position in self._writers[storage]:
                if before is None or position < before:
                    needed.add(position)
                    pending.extend(self._entries[position].reads)
        return sorted(needed)

    def _without_overwritten(self, order: list[int], key: int) -> list[int]:
        """Drop calls on a storage that a later call overwrites unread, except its creation."""
        if any(set(self._entries[i].writes) != {key} for i in order):
            return order
        last = max((n for n, i in enumerate(order) if self._entries[i].overwrites), default=0)
        return order[:1] + order[max(last, 1) :]

    def _evaluate(self, tensor: torch.Tensor, draws: Draws | None) -> torch.Tensor:
        """Replay what `tensor` depends on and return its part of the storage."""
        key = storage_key(tensor)
        storages: dict[int, torch.UntypedStorage] = {}
        for position in self._without_overwritten(self._needed(key), key):
            self._replay(position, storages, draws)
        return Place.of(tensor).over(storages[key])

    def _pass_by(self, position: int, draws: Draws) -> None:
        """Run one random call for what it takes from the generator alone."""
        entry = self._entries[position]
        storages: dict[int, torch.UntypedStorage] = {}
        places = [x for x in tree_leaves((entry.args, entry.kwargs)) if isinstance(x, Place)]
        if entry.func.overloadpacket in _DRAWS_INTO and len(places) == 1:
            storages[places[0].key] = places[0].memory()
        else:
            for earlier in self._needed(*entry.reads, before=position):
                self._replay(earlier, storages, draws)
        self._replay(position, storages, draws)

    def _replay(
        self, position: int, storages: dict[int, torch.UntypedStorage], draws: Draws | None
    ) -> None:
        """Run one recorded call on real tensors."""
        entry = self._entries[position]
        if any(t._version != version for t, version in entry.versions):
            raise CannotReplayError

        def real(place: Place) -> torch.Tensor:
            return place.over(storages[place.key])

        args, kwargs = tree_map_only(Place, real, (entry.args, entry.kwargs))
        with self._drawing(position, draws), default_type(entry.default):
            outs = tree_leaves(entry.func(*args, **kwargs))
        for place, out in zip(tree_leaves(entry.outs), outs, strict=True):
            if isinstance(place, Place):
                storages.setdefault(place.key, laid_out(out, place))

    def _drawing(
        self, position: int, draws: Draws | None
    ) -> contextlib.AbstractContextManager[None]:
        """Let a random call find the generator where the constructor had it."""
        if not _is_random(self._entries[position].func):
            return contextlib.nullcontext()
        if draws is None:
            raise CannotReplayError
        return draws.at(position)


def _run_for_real(func: OpOverload, args: Args, kwargs: Kwargs) -> object:
    """Call an operator on real tensors from inside a fake mode."""
    with unset_fake_temporarily():
        made: object = func(*args, **kwargs)
    return made


def _is_random(func: OpOverload) -> bool:
    """Whether the operator takes numbers from a generator."""
    return torch.Tag.nondeterministic_seeded in func.tags


def _own_generator(args: Args, kwargs: Kwargs) -> bool:
    """Whether a call names the generator that it draws from."""
    return any(isinstance(x, torch.Generator) for x in tree_leaves((args, kwargs)))


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
