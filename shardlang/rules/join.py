"""Rules of ops that join tensors along a dim or cut one apart: cat, stack, split.

A dim made of stretches, `[c0|c1]`, is split by splitting every stretch over the same axes, so that
a fused projection cut into its parts stays local.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import fx

from shardlang.ir.compat import OpOverload
from shardlang.ir.device_values import size_at
from shardlang.ir.node import tensor_of
from shardlang.ir.reads import Reads, Stretch
from shardlang.ir.rule import Sharding
from shardlang.rules.call import Call, LocalCall, shape_of
from shardlang.rules.op_rule import Emit
from shardlang.rules.reads import emit_reads, read_before, unplaced
from shardlang.rules.registry import rule
from shardlang.rules.slices import cut_from
from shardlang.rules.view import in_place
from shardlang.rules.writing import arrow, blocks, names, swapped

aten = torch.ops.aten

_ZEROS = (aten.zeros, aten.zeros_like, aten.new_zeros)


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


def _as_reads(call: Call) -> list[str]:
    """One tensor, slices of it and zeros, along the dim of the slices: it reads that tensor."""
    rank, last = len(call.out), len(call.slots) - 1
    at = call.dim(rank=rank)
    read = {cut_from(node, at) for node in call.operands if not _is_zero(node)}
    if not last or len(read) != 1 or any(len(shape) != rank for shape in call.shapes):
        return []
    dims = names(rank)
    operands = [swapped(dims, at, f"c{i}~@c{last}") for i in range(last)]
    operands.append(swapped(dims, at, f"c{last}~"))
    return [arrow(operands, [swapped(dims, at, f"y@c{last}")])]


def _is_zero(node: fx.Node) -> bool:
    """Whether a value is made as zeros."""
    return isinstance(node.target, OpOverload) and node.target.overloadpacket in _ZEROS


def _lower_cat(call: Call, sharding: Sharding, emit: Emit) -> fx.Node:
    """What the slices read, one after the other, where it is of one tensor."""
    at = call.dim(rank=len(call.out))
    sizes = [shape[at] for shape in call.shapes]
    found = [_read(*pair, at) for pair in zip(call.operands, sizes, strict=True)]
    bases = {base for base, _ in found if base is not None}
    if len(bases) > 1:
        return _added(call.operands, sizes, at, emit)
    base = bases.pop()
    stretches = (one for _, each in found for one in each)
    return emit_reads(emit, base, at, shape_of(tensor_of(base))[at], stretches)


def _read(node: fx.Node, size: int, at: int) -> tuple[fx.Node | None, list[Stretch]]:
    """What a value reads, and of which tensor; of none if it is zeros."""
    source = unplaced(node)
    if _is_zero(source):
        return None, [size]
    base, reads = read_before(source, at) or (node, Reads.of(size, [range(size)]))
    return base, [one for run in reads.runs for one in run.stretches()]


def _added(operands: Sequence[fx.Node], sizes: Sequence[int], at: int, emit: Emit) -> fx.Node:
    """Each operand in its place, with zeros around it, and their sum."""
    made, begin = [], 0
    for node, size in zip(operands, sizes, strict=True):
        around: list[Stretch] = [begin, range(size), sum(sizes) - begin - size]
        made.append(emit_reads(emit, node, at, size, around))
        begin += size
    return functools.reduce(lambda one, other: emit(aten.add.Tensor, one, other), made)


rule(
    aten.cat.default, aten.concat.default, aten.concatenate.default,
    spec=_cat, others=_as_reads, linear=["tensors"], lower=_lower_cat,
)  # fmt: skip
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
