"""Rules of windows and differences along a dim."""

from __future__ import annotations

import torch
from torch import fx

from shardlang.ir.device_values import size_at
from shardlang.ir.rule import Sharding
from shardlang.rules import local_window
from shardlang.rules.call import Call, LocalCall
from shardlang.rules.op_rule import Emit
from shardlang.rules.registry import rule
from shardlang.rules.window import Sliding, halo
from shardlang.rules.writing import arrow, names, swapped

aten = torch.ops.aten


def _unfold(call: Call) -> str:
    """Windows side by side split with the dim; others read their neighbours."""
    dims = names(len(call.shapes[0]))
    if not dims:
        return ". -> w!"
    at = call.integer("dimension") % len(dims)
    size, step = call.integer("size"), call.integer("step")
    count = call.out[at]
    if size != step:
        return arrow([swapped(dims, at, "x0~")], [[*swapped(dims, at, "y0@x0"), "s!"]])
    rest = call.shapes[0][at] - count * size
    windows = f"(w={count} s={size}!)"
    source = f"[{windows}|rest={rest}]" if rest else windows
    return arrow([swapped(dims, at, source)], [[*swapped(dims, at, "w"), "s"]])


def _lower_unfold(call: Call, sharding: Sharding, emit: Emit) -> fx.Node:
    """Windows of windows."""
    size, step = call.integer("size"), call.integer("step")
    at = call.integer("dimension") % len(call.shapes[0])
    one = Sliding(at, 0, call.shapes[0][at], size, step)
    x = halo(call.operand("self"), sharding, emit, [one])
    return emit(local_window.unfolded, x, at, size, step, call.out[at])


rule(
    aten.unfold.default, aten.unfold_copy.default,
    spec=_unfold, linear=["self"], lower=_lower_unfold,
)  # fmt: skip


def _unfolded(call: Call) -> str:
    dims, at = names(len(call.shapes[0])), call.integer("dim")
    count, size = call.integer("count"), call.integer("size")
    after = [*swapped(dims, at, f"y0={count}@{dims[at]}"), f"s={size}!"]
    return arrow([dims], [after])


def _local_count(call: Call, sharding: Sharding) -> LocalCall:
    return call.replace(count=size_at(sharding.factors["y0"]))


rule(local_window.unfolded, spec=_unfolded, linear=["x"], localize=_local_count)


def _differences(call: Call) -> str:
    """Differences read their neighbours; with something put before or after, the dim stays whole.

    The other dims are carried, those of what is put there too.
    """
    dims, at = names(len(call.out)), call.dim()
    if len(call.shapes) == 1 and call.integer("n") and call.out[at]:
        return arrow([swapped(dims, at, "x0~")], [swapped(dims, at, "y0@x0")])
    operands = [swapped(dims, at, f"x{i}!") for i in range(len(call.shapes))]
    return arrow(operands, [swapped(dims, at, "y!")])


def _lower_differences(call: Call, sharding: Sharding, emit: Emit) -> fx.Node:
    """Differences of windows."""
    order, at = call.integer("n"), call.dim()
    one = Sliding(at, 0, call.shapes[0][at], order + 1)
    x = halo(call.operand("self"), sharding, emit, [one])
    return emit(local_window.differences, x, at, order, call.out[at])


rule(
    aten.diff, spec=_differences, linear=["self prepend append"], lower=_lower_differences,
)  # fmt: skip


def _window_differences(call: Call) -> str:
    dims, at = names(len(call.shapes[0])), call.integer("dim")
    return arrow([dims], [swapped(dims, at, f"y0={call.integer('count')}@{dims[at]}")])


rule(
    local_window.differences,
    spec=_window_differences, linear=["x"], localize=_local_count,
)  # fmt: skip
