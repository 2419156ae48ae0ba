"""Every call of a process group in a step, on four gloo processes."""

from __future__ import annotations

import functools
import itertools
from pathlib import Path
from tempfile import mkdtemp

import torch
import torch.distributed as dist
from kinds import kind_of
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import shardlang
from shardlang.api import Program
from shardlang.runtime.watch import WATCH
from tests.plan.models import stack

DATA, GRID = "mesh { d = 4 }", "mesh { d = 2 tp = 2 }"
SPLIT = 'param "layers.*.up.*" [tp, ...] param "layers.*.down.weight" [_, tp]'
SPECS = {
    "data, clip": (DATA, "", ", clip = 0.5"),
    "fsdp": (DATA, 'store "**" over d', ""),
    "fsdp x tensor, recompute": (
        GRID,
        f'{SPLIT} store "**" over d regather schedule {{ prefetch 4KiB }} recompute "layers.0"',
        "",
    ),
    "gradients x tensor": (GRID, f'{SPLIT} store gradients "**" over d', ""),
    "optimizer x sequence, clip": (
        GRID,
        f'{SPLIT} value "layers.*".out [d, tp, _] store optimizer "**" over d',
        ", clip = 0.5",
    ),
}
"""Mesh, statements, and what the optimizer is given."""

COUNTS = (1, 8)
ROWS = 32

Seen = tuple[str, tuple[int, ...], int]
"""The collective, the ranks of the group, and the bytes that this rank sends."""

Counted = dict[tuple[str, int], tuple[list[Seen], set[str]]]
"""By spec and number of microbatches, what a step sends, and for what else the ranks meet."""


class Boundary(TorchDispatchMode):
    """Every call of a process group, in order.

    Attributes:
        sent: those of the program.
        compared: what all others are made for, by their names in the watch.
    """

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[Seen] = []
        self.compared: set[str] = set()

    def __torch_dispatch__(
        self, func: object, types: object, args: tuple[object, ...] = (), kwargs: object = None
    ) -> object:
        assert isinstance(func, torch._ops.OpOverload)
        if func.namespace == "c10d":
            if WATCH.now.startswith(("comparison", "wait for work")):
                self.compared.add(WATCH.now)
            elif func.overloadpacket.__name__ != "recv_":
                self.sent.append(_seen(func.overloadpacket.__name__, args))
        return func(*args, **(kwargs if isinstance(kwargs, dict) else {}))


def _seen(op: str, args: tuple[object, ...]) -> Seen:
    """A call: what it makes, between whom it is, and what it sends by a ring algorithm."""
    boxed = next(a for a in args if isinstance(a, torch.ScriptObject) and "Group" in str(a._type()))
    group = dist.ProcessGroup.unbox(boxed)
    ranks = tuple(dist.get_process_group_ranks(group))
    others, kind = len(ranks) - 1, kind_of(op, args)
    if op == "allreduce_":
        (message,) = _tensors(args[0])
        return kind, ranks, 2 * message.nbytes * others // len(ranks)
    if op == "send":
        (message,) = _tensors(args[0])
        return kind, ranks, message.nbytes
    message = _tensors(args[1])[0]
    if op == "_allgather_base_":
        return kind, ranks, message.nbytes * others
    shares = args[4]
    assert isinstance(shares, list)
    if not shares:
        return kind, ranks, message.nbytes * others // len(ranks)
    apart = [n for rank, n in zip(ranks, shares, strict=True) if rank != dist.get_rank()]
    return kind, ranks, sum(apart) * message.element_size()


def _tensors(given: object) -> list[Tensor]:
    found = given if isinstance(given, list) else [given]
    return [x for x in found if isinstance(x, Tensor)]


def counted_program(name: str, count: int) -> Program:
    """A spec on two layers, the mean of their squares as the loss."""
    mesh, stated, given = SPECS[name]
    text = f"{mesh}\ninput x : f32[{ROWS}, 6, 5] [d, _, _]\n{stated}\naccumulate {count}\n"
    path = Path(mkdtemp()) / "spec.shard"
    path.write_text(f"{text}optimizer adamw(lr = 0.02{given})\n")
    return shardlang.compile(path, model=lambda: stack(5, 7, 2))


@functools.cache
def programs() -> dict[tuple[str, int], Program]:
    """Every spec with every number of microbatches."""
    return {each: counted_program(*each) for each in itertools.product(SPECS, COUNTS)}


def counted() -> Counted:
    """Of every spec what its third step sends, and what else is compared."""
    found = {}
    x = torch.linspace(-1, 2, ROWS * 30).view(ROWS, 6, 5)
    for (name, count), made in programs().items():
        made.load()
        losses = [made.step({"x": x}).loss for _ in range(2)]
        with Boundary() as boundary:
            losses.append(made.step({"x": x}).loss)
        assert losses[0] > losses[1] > losses[2]
        found[name, count] = boundary.sent, boundary.compared
    return found
