"""Rules of ops that join tensors along a dim or cut one apart: cat, stack, split, slice.

A dim made of stretches, `[c0|c1]`, is split by splitting every stretch over the same axes, so that
a fused projection cut into its parts stays local.
"""

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
from shardlang.rules.view import in_place
from shardlang.rules.writing import arrow, blocks, names, swapped

aten = torch.ops.aten


def _cat_along(call: Call, at: int) -> str:
    """Tensors one after another; empty vectors are left out, as cat does."""
    rank = len(call.out)
    dims = names(rank)
    operands, stretches = [], []
    for i, shape in enumerate(call.shapes):
        if len(shape) != rank:
            operands.append([f"e{i}={shape[0]}!"])
            continue
        stretches.append((f"c{i}", shape[at]))
        operands.append(swapped(dims, at, f"c{i}={shape[at]}"))
    return arrow(operands, [swapped(dims, at, blocks(stretches))])


def _cat(call: Call) -> str:
    return _cat_along(call, call.dim(rank=len(call.out)))


rule(aten.cat.default, aten.concat.default, aten.concatenate.default, spec=_cat, linear=["tensors"])
rule(
    aten.hstack.default,
    spec=lambda call: _cat_along(call, 0 if len(call.out) == 1 else 1), linear=["tensors"],
)  # fmt: skip


def _stack_along(call: Call, at: int) -> str:
    dims = names(len(call.out) - 1)
    return arrow([dims] * len(call.shapes), [[*dims[:at], "k!", *dims[at:]]])


def _stack(call: Call) -> str:
    return _stack_along(call, call.dim(rank=len(call.out)))


def _vstack(call: Call) -> str:
    if all(len(shape) < 2 for shape in call.shapes):
        dims = ["d1"] if call.shapes[0] else []
        return arrow([dims] * len(call.shapes), [["k!", *(dims or ["1"])]])
    return _cat_along(call, 0)


rule(aten.stack.default, spec=_stack, linear=["tensors"])
rule(aten.vstack.default, spec=_vstack, linear=["tensors"])


def _cut_along(call: Call, at: int) -> str:
    """One tensor cut into consecutive stretches."""
    dims = names(len(call.shapes[0]))
    sizes = [shape[at] for shape in call.result_shapes]
    stretches = [(f"c{i}", size) for i, size in enumerate(sizes)]
    results = [swapped(dims, at, f"c{i}={size}") for i, size in enumerate(sizes)]
    return arrow([swapped(dims, at, blocks(stretches))], results)


def _split(call: Call) -> str:
    return _cut_along(call, call.dim())


def _local_shards(call: Call, sharding: Sharding, at: int) -> LocalCall:
    """Any cut as a split into the local sizes."""
    sizes = [size_at(sharding.result(i).dims[at]) for i in range(len(call.result_shapes))]
    return aten.split_with_sizes.default, (call.operands[0], sizes, at), {}


rule(
    aten.split.Tensor, aten.split.sizes, aten.split_with_sizes.default, aten.chunk.default,
    aten.tensor_split.sections, aten.tensor_split.indices, aten.unsafe_split.Tensor,
    aten.unsafe_split_with_sizes.default, aten.unsafe_chunk.default,
    aten.split_copy.Tensor, aten.split_with_sizes_copy.default,
    spec=_split, linear=["self"], view=in_place,
    localize=lambda call, sharding: _local_shards(call, sharding, call.dim()),
)  # fmt: skip
_HORIZONTAL = {aten.hsplit: 1, aten.vsplit: 0, aten.dsplit: 2}


def _named_dim(call: Call) -> int:
    """The dim that hsplit, vsplit or dsplit cuts."""
    return min(_HORIZONTAL[call.overload.overloadpacket], len(call.shapes[0]) - 1)


rule(
    *(op for packet in _HORIZONTAL for op in (packet.int, packet.array)),
    spec=lambda call: _cut_along(call, _named_dim(call)), linear=["self"],
    localize=lambda call, sharding: _local_shards(call, sharding, _named_dim(call)),
)  # fmt: skip


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
    aten.slice.Tensor, aten.slice_copy.Tensor,
    spec=_slice, others=_as_shift, linear=["self"], localize=_local_slice, lower=_lower_slice,
)  # fmt: skip
rule(
    aten.narrow.default, aten.narrow_copy.default,
    spec=_slice, others=_as_shift, linear=["self"], localize=_local_narrow, lower=_lower_slice,
)  # fmt: skip
rule(
    aten.slice_scatter.default,
    spec=_slice_scatter, linear=["self src"], localize=_local_slice,
)  # fmt: skip


def _meshgrid(call: Call) -> str:
    """Every vector spread over a grid of all of them."""
    dims = [f"d{i}" if shape else "1" for i, shape in enumerate(call.shapes)]
    grid = list(dims)
    if call.get("indexing") == "xy" and len(grid) > 1:
        grid[0], grid[1] = grid[1], grid[0]
    vectors = [[dim] if shape else [] for dim, shape in zip(dims, call.shapes, strict=True)]
    return arrow(vectors, [grid] * len(dims))


rule(
    aten.meshgrid.default, aten.meshgrid.indexing,
    spec=_meshgrid, linear=["tensors"], view=True,
)  # fmt: skip


def _block_diag(call: Call) -> str:
    operands = [
        [f"d{i}x{j}={size}!" for j, size in enumerate(shape)] for i, shape in enumerate(call.shapes)
    ]
    return arrow(operands, [["m!", "n!"]])


rule(aten.block_diag.default, spec=_block_diag, linear=["tensors"])
