"""What goes over the transport: the four calls that move data between the members of a group.

Tensors of any memory in, dense ones out, inputs unchanged. They are the calls of the process group
itself, which cost the least. This is the one module that uses them.

gloo has no true reduce-scatter (it all-reduces everything), its ring all-reduce takes two rounds
where two members need one, and its all-gather copies all that arrives: these are built on the
all-to-all here, which sends the same bytes as the ring algorithms and takes about half the time.
Large tensors that may hold the sum are all-reduced by the ring, which takes no memory for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from shardlang.ir.collective import ReduceOp
from shardlang.ir.compat import (
    AllgatherOptions,
    AllreduceOptions,
    AllToAllOptions,
    ReduceScatterOptions,
)
from shardlang.runtime.communication import Call
from shardlang.runtime.groups import Group
from shardlang.runtime.waits import WAITS, Mark

_OPS = {
    ReduceOp.SUM: dist.ReduceOp(dist.ReduceOp.SUM),
    ReduceOp.MAX: dist.ReduceOp(dist.ReduceOp.MAX),
    ReduceOp.MIN: dist.ReduceOp(dist.ReduceOp.MIN),
}
T = TypeVar("T")
_Binary = Callable[..., Tensor]
_LOCAL: dict[ReduceOp, _Binary] = {
    ReduceOp.SUM: torch.add, ReduceOp.MAX: torch.maximum, ReduceOp.MIN: torch.minimum,
}  # fmt: skip

_SENT_AS_BYTES = {torch.bool, torch.int16, torch.complex64, torch.complex128}
"""Types that some backend cannot move."""

_REDUCED_AS = {torch.bool: torch.int32, torch.int16: torch.int32}
"""Types that some backend cannot reduce, and one that holds them and a sum over all devices."""


_LARGE = 1 << 20
"""Bytes from which on gloo's ring in place is as fast for two members as an exchange."""


class Arriving:
    """What a call brings: there once it is waited for, with all that the call still reads."""

    __slots__ = ("_message", "_out", "_then", "_work")

    def __init__(
        self, out: Tensor, work: dist.Work | None = None, message: Tensor | None = None
    ) -> None:
        self._out, self._work, self._message = out, work, message
        self._then: Callable[[Tensor], Tensor] | None = None

    def wait(self) -> Tensor:
        """What arrives; on a GPU, where the current stream has waited for it."""
        return self.waited_since(WAITS.begin())

    def waited_since(self, began: Mark) -> Tensor:
        """The same, of a wait that began before."""
        if self._work is not None:
            self._work.wait()
            WAITS.end(began)
        out, self._message, self._work = self._out, None, None
        return out if self._then is None else self._then(out)

    def then(self, made: Callable[[Tensor], Tensor]) -> Arriving:
        """The same, and what is made of it."""
        before = self._then
        self._then = made if before is None else lambda x: made(before(x))
        return self


class Wire:
    """The calls of one group.

    On a GPU a call takes its turn on the current stream, or runs beside that where it is `aside`,
    from its start to the wait for it.
    """

    def __init__(self, group: Group, aside: bool = False) -> None:
        self.size = group.size
        self.index = group.index
        self.gloo = group.backend == "gloo"
        self.pair = self.gloo and group.size == 2
        if group.connection is not None:
            self._connection = group.connection
        self._reduce_options = {op: _options(AllreduceOptions, aside) for op in _OPS}
        for op, options in self._reduce_options.items():
            options.reduceOp = _OPS[op]
        self._gather_options = _options(AllgatherOptions, aside)
        self._scatter_options = _options(ReduceScatterOptions, aside)
        self._scatter_options.reduceOp = _OPS[ReduceOp.SUM]
        self._exchange_options = _options(AllToAllOptions, aside)

    def make(self, call: Call, message: Tensor) -> Tensor:
        """What this member gets in a call to which it brings `message`."""
        began = WAITS.begin()
        return self.start(call, message).waited_since(began)

    def all_reduce(self, x: Tensor, op: ReduceOp = ReduceOp.SUM) -> Tensor:
        """The sum (or max, or min) over the members, on every member."""
        began = WAITS.begin()
        return self._all_reduce(x, op).waited_since(began)

    def all_gather(self, x: Tensor) -> Tensor:
        """The members' tensors one after the other, flat; all have the same size."""
        began = WAITS.begin()
        return self._all_gather(x).waited_since(began)

    def start(self, call: Call, message: Tensor) -> Arriving:
        """Begin a call. Nobody may write the message before it is waited for."""
        if call.kind == "all_reduce":
            return self._all_reduce(message, call.op, call.spare)
        if call.kind == "exchange":
            return self._exchange(message, call.sent, call.received)
        gathers = call.kind == "all_gather"
        return self._all_gather(message) if gathers else self._reduce_scatter(message)

    def _all_reduce(self, x: Tensor, op: ReduceOp, spare: bool = False) -> Arriving:
        """A `spare` tensor is no longer needed and may hold the result."""
        if self.size == 1 or x.numel() == 0:
            return Arriving(x)
        if x.dtype in _REDUCED_AS:
            dtype = x.dtype
            return self._all_reduce(x.to(_REDUCED_AS[dtype]), op).then(lambda y: y.to(dtype))
        if self.pair and not (spare and self._is_large(x)):
            return self._swap_and_add(_dense(x), op)
        out = _dense(x) if spare else x.clone(memory_format=torch.contiguous_format)
        group = self._connection.process_group
        return Arriving(out, group.allreduce([out], self._reduce_options[op]))

    def _is_large(self, x: Tensor) -> bool:
        """Whether gloo's ring in place takes no longer than an exchange, which takes memory."""
        return x.numel() * x.element_size() >= _LARGE and not x.is_complex()

    def _swap_and_add(self, x: Tensor, op: ReduceOp) -> Arriving:
        """An all-reduce of two members: each sends the other all that it has."""
        arriving = self._exchange(x.view(-1), *self._all_to_other(x))
        return arriving.then(lambda y: _combined(op, y.view(x.shape), x))

    def _all_to_other(self, x: Tensor) -> tuple[list[int], list[int]]:
        """The elements sent and received where two members exchange all of a tensor."""
        sizes = [0, 0]
        sizes[1 - self.index] = x.numel()
        return sizes, sizes

    def _all_gather(self, x: Tensor) -> Arriving:
        if self.size == 1 or x.numel() == 0:
            return Arriving(x.reshape(-1))
        if x.dtype in _SENT_AS_BYTES:
            dtype = x.dtype
            return self._all_gather(_as_bytes(x)).then(lambda y: y.view(dtype))
        out = x.new_empty(x.numel() * self.size)
        rows = out.view(self.size, -1)
        mine = rows[self.index]
        mine.view(x.shape).copy_(x)
        group = self._connection.process_group
        if not self.pair:
            return Arriving(out, group._allgather_base(out, mine, self._gather_options))
        sent, received = self._all_to_other(mine)
        other = rows[1 - self.index]
        work = group.alltoall_base(other, mine, received, sent, self._exchange_options)
        return Arriving(out, work)

    def _reduce_scatter(self, x: Tensor) -> Arriving:
        """The sum over the members of their rows for this one; `x` is one equal row per member."""
        if self.size == 1 or x.numel() == 0:
            return Arriving(x.reshape(-1))
        if x.dtype in _REDUCED_AS:
            dtype = x.dtype
            return self._reduce_scatter(x.to(_REDUCED_AS[dtype])).then(lambda y: y.to(dtype))
        x = _dense(x).view(-1)
        if x.is_complex():
            pairs = self._reduce_scatter(torch.view_as_real(x))
            return pairs.then(lambda y: torch.view_as_complex(y.view(-1, 2)))
        if self.pair:
            rows = x.view(2, -1)
            mine, other = rows[self.index], rows[1 - self.index]
            arriving = self._exchange(other, *self._all_to_other(other))
            return arriving.then(lambda y: _combined(ReduceOp.SUM, y, mine))
        if self.gloo:
            return self._exchange(x).then(self._sum_rows)
        out = x.new_empty(x.numel() // self.size)
        group = self._connection.process_group
        return Arriving(out, group._reduce_scatter_base(out, x, self._scatter_options), x)

    def _sum_rows(self, x: Tensor) -> Tensor:
        return x.view(self.size, -1).sum(0, dtype=x.dtype)

    def _exchange(
        self, x: Tensor, sent: list[int] | None = None, received: list[int] | None = None
    ) -> Arriving:
        """All-to-all of the flat `x`: `sent` elements to each member, `received` from each.

        Without sizes, equal shares.
        """
        if self.size == 1:
            return Arriving(x)
        if x.dtype in _SENT_AS_BYTES:
            return self._exchange_bytes(x, sent, received)
        x = _dense(x)
        out = x.new_empty(sum(received) if received is not None else x.numel())
        work = self._connection.process_group.alltoall_base(
            out, x, received or [], sent or [], self._exchange_options
        )
        return Arriving(out, work, x)

    def _exchange_bytes(
        self, x: Tensor, sent: list[int] | None, received: list[int] | None
    ) -> Arriving:
        scale, dtype = x.element_size(), x.dtype
        bytes_sent, bytes_received = (
            [n * scale for n in counts] if counts is not None else None
            for counts in (sent, received)
        )
        arriving = self._exchange(_as_bytes(x), bytes_sent, bytes_received)
        return arriving.then(lambda y: y.view(dtype))


class Link:
    """One way between two devices: what one sends, the other receives in the same order."""

    def __init__(self, group: Group) -> None:
        """The group has two members."""
        self._connection, self._other = group.connection, 1 - group.index

    def send(self, x: Tensor) -> Arriving:
        """Begin to send a tensor, which nobody may write before it is waited for."""
        x = _as_bytes(x) if x.dtype in _SENT_AS_BYTES else _dense(x)
        return Arriving(x, self._group.send([x], self._other, 0))

    def receive(self, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Arriving:
        """Begin to receive a tensor of this shape and type."""
        out = torch.empty(shape, dtype=dtype, device=device)
        sent = out.view(-1).view(torch.uint8) if dtype in _SENT_AS_BYTES else out
        return Arriving(out, self._group.recv([sent], self._other, 0))

    @property
    def _group(self) -> dist.ProcessGroup:
        assert self._connection is not None
        found: dist.ProcessGroup = self._connection.process_group
        return found


def _combined(op: ReduceOp, received: Tensor, x: Tensor) -> Tensor:
    return _LOCAL[op](received, x, out=received)


def _options(kind: Callable[[], T], aside: bool) -> T:
    """Options of one call: on the current stream or aside, where the backend has streams."""
    options = kind()
    if hasattr(options, "asyncOp"):
        options.asyncOp = aside
    return options


def _as_bytes(x: Tensor) -> Tensor:
    x = _dense(x)
    return x.as_strided((x.numel(),), (1,)).view(torch.uint8)


def _dense(x: Tensor) -> Tensor:
    """The same values as they lie in memory: neither strided, nor conjugated or negated lazily."""
    return x.resolve_conj().resolve_neg().contiguous()
