"""Rules of slices: a part of a packed dim, a digit of a dim, or a dim that reads another."""

from __future__ import annotations

import torch
from torch import fx

from shardlang.ir.device_values import LocalSize, size_at
from shardlang.ir.regroup import join_blocks
from shardlang.ir.rule import Sharding
from shardlang.rules.call import Call, LocalCall
from shardlang.rules.op_rule import Emit
from shardlang.rules.reads import emit_reads
from shardlang.rules.registry import rule
from shardlang.rules.writing import arrow, blocks, names, swapped

aten = torch.ops.aten

_SLICES = (aten.slice.Tensor, aten.slice_copy.Tensor)
_NARROWS = (aten.narrow.default, aten.narrow_copy.default)


def _bounds(call: Call, size: int) -> tuple[int, int, int]:
    """Start, end and step of a slice or narrow, within the dim."""
    if "length" in call.names:
        start = call.integer("start")
        start = start % size if start < 0 else start
        return start, start + call.integer("length"), 1
    return slice(call["start"], call["end"], call["step"]).indices(size)


def _stretches(size: int, start: int, end: int) -> str:
    """A dim as what stands before, in and after a slice."""
    end = max(start, end)
    return blocks([("pre", start), ("mid", end - start), ("post", size - end)])


def _strided(size: int, start: int, end: int, step: int) -> tuple[str, str] | None:
    """The dim and its slice with a step, where every step-th index is one digit of the dim."""
    if size % step == 0 and start < step and end > size - step + start:
        return f"(n={size // step} s={step}!)", "n"
    return None


TRIMMED = 2
"""A slice that leaves out no more than so many indices is taken as a shift of the dim; one that
leaves out more, as a part of a packed dim, unless the dim is split in one piece."""


def _is_trim(call: Call) -> bool:
    size = call.shapes[0][call.dim()]
    start, end, step = _bounds(call, size)
    return step == 1 and start < end < start + size and size - TRIMMED <= end - start


def _slice_dims(call: Call, at: int) -> tuple[str, str]:
    size = call.shapes[0][at]
    start, end, step = _bounds(call, size)
    if "src" not in call.names and _is_trim(call):
        return _shifted(at)
    if step > 1 and call.out[at]:
        digits = _strided(size, start, end, step)
        return digits or (_shifted(at) if "src" not in call.names else ("n!", "m!"))
    if end <= start:
        return "n!", "m!"
    return _stretches(size, start, end), "mid"


def _shifted(at: int) -> tuple[str, str]:
    """The dims of a slice that reads its neighbours."""
    return f"x{at}~", f"y{at}@x{at}"


def _as_shift(call: Call) -> list[str]:
    """A slice of a dim that is split in one piece."""
    dims, at = names(len(call.shapes[0])), call.dim()
    if _slice_dims(call, at) == _shifted(at) or not call.out[at]:
        return []
    before, after = _shifted(at)
    return [arrow([swapped(dims, at, before)], [swapped(dims, at, after)])]


def _slice(call: Call) -> str:
    dims, at = names(len(call.shapes[0])), call.dim()
    before, after = _slice_dims(call, at)
    return arrow([swapped(dims, at, before)], [swapped(dims, at, after)])


def _slice_scatter(call: Call) -> str:
    dims, at = names(len(call.shapes[0])), call.dim()
    before, after = _slice_dims(call, at)
    whole = swapped(dims, at, before)
    return arrow([whole, swapped(dims, at, after)], [whole])


def local_bounds(sharding: Sharding) -> tuple[int | LocalSize, int | LocalSize]:
    """Local start and end of the `mid` stretch."""
    before = [sharding.factors["pre"]] if "pre" in sharding.factors else []
    return (
        size_at(join_blocks(before)) if before else 0,
        size_at(join_blocks([*before, sharding.factors["mid"]])),
    )


def _local_slice(call: Call, sharding: Sharding) -> LocalCall:
    if "mid" in sharding.factors:
        start, end = local_bounds(sharding)
        return call.replace(start=start, end=end)
    if "s" in sharding.factors:
        return call.replace(end=size_at(sharding.operand(0).dims[call.dim()]))
    return call.replace()


def _local_narrow(call: Call, sharding: Sharding) -> LocalCall:
    if "mid" not in sharding.factors:
        return call.replace()
    start, _ = local_bounds(sharding)
    return call.replace(start=start, length=size_at(sharding.factors["mid"]))


def _lower_slice(call: Call, sharding: Sharding, emit: Emit) -> fx.Node:
    """A shortened dim: neighbours hand on what belongs elsewhere now."""
    at, size = call.dim(), call.shapes[0][call.dim()]
    return emit_reads(emit, call.operand("self"), at, size, [range(*_bounds(call, size))])


rule(
    *_SLICES,
    spec=_slice, others=_as_shift, linear=["self"], localize=_local_slice, lower=_lower_slice,
)  # fmt: skip
rule(
    *_NARROWS,
    spec=_slice, others=_as_shift, linear=["self"], localize=_local_narrow, lower=_lower_slice,
)  # fmt: skip
rule(
    aten.slice_scatter.default,
    spec=_slice_scatter, linear=["self src"], localize=_local_slice,
)  # fmt: skip


def cut_from(node: fx.Node, at: int) -> fx.Node:
    """The tensor of which a value is a slice along a dim; the value itself if it is none."""
    if node.target not in (*_SLICES, *_NARROWS):
        return node
    call = Call(node)
    return call.operand("self") if call.dim() == at else node
