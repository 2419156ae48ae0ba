"""Rules of ops that regroup, reorder, add or drop dims without touching the elements."""

from __future__ import annotations

import torch

from shardlang.ir.device_values import LocalSize, size_at
from shardlang.ir.node import tensor_of
from shardlang.ir.rule import Sharding
from shardlang.rules.call import Call, LocalCall
from shardlang.rules.notation import Refusal
from shardlang.rules.refine import reshape_spec
from shardlang.rules.registry import rule
from shardlang.rules.schema import short_name
from shardlang.rules.writing import arrow, names

aten = torch.ops.aten


def local_sizes(sharding: Sharding, index: int = 0) -> list[int | LocalSize]:
    """The local shape of a result."""
    return [size_at(dim) for dim in sharding.result(index).dims]


def to_reshape(call: Call, sharding: Sharding) -> LocalCall:
    """Any regrouping of dims as a reshape to the local shape (shards may not be contiguous)."""
    return aten.reshape.default, (call.operands[0], local_sizes(sharding)), {}


def _reshape(call: Call) -> str:
    return reshape_spec(call.shapes[0], call.out)


def _reshape_like(call: Call) -> str:
    """The second operand gives only its shape, which is the result's."""
    before, after = reshape_spec(call.shapes[0], call.out).split(" -> ")
    return f"{before}, {after} -> {after}"


def in_place(call: Call) -> bool:
    """Every op that regroups dims but a copy; the schemas of some leave that out."""
    return not short_name(call.target).endswith("_copy")


rule(
    aten.view.default, aten.reshape.default, aten._unsafe_view.default, aten.view_copy.default,
    aten._reshape_alias.default, aten._reshape_copy.default,
    aten.flatten.using_ints, aten.unflatten.int, aten.ravel.default,
    aten.unsqueeze.default, aten.unsqueeze_copy.default,
    aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims,
    aten.squeeze_copy.default, aten.squeeze_copy.dim, aten.squeeze_copy.dims,
    aten.atleast_1d.default, aten.atleast_2d.default, aten.atleast_3d.default,
    spec=_reshape, linear=["self"], localize=to_reshape, view=in_place, moves=True,
)  # fmt: skip
rule(
    aten.view_as.default, aten.reshape_as.default,
    spec=_reshape_like, linear=["self"], localize=to_reshape,
)  # fmt: skip


def _moved(call: Call) -> str:
    """The order of the result's dims, read off the shape of a tensor whose dims all differ."""
    rank = len(call.shapes[0])
    probe = torch.empty([i + 2 for i in range(rank)], device="meta")
    rest = {k: v for k, v in call.arguments.items() if k != call.slots[0].name}
    moved = call.target(probe, **rest)
    assert isinstance(moved, torch.Tensor)
    dims = names(rank)
    return arrow([dims], [[dims[size - 2] for size in moved.shape]])


rule(
    aten.permute.default, aten.permute_copy.default,
    aten.transpose.int, aten.transpose_copy.int, aten.t.default, aten.t_copy.default,
    aten.numpy_T.default, aten.mT.default, aten.mH.default, aten.matrix_H.default,
    aten.adjoint.default, aten.movedim.int, aten.movedim.intlist,
    aten.moveaxis.int, aten.moveaxis.intlist, aten.swapaxes.default, aten.swapdims.default,
    spec=_moved, linear=["self"], moves=True,
)  # fmt: skip

rule(
    aten.view_as_real.default, aten.view_as_real_copy.default,
    spec="d... -> d... pair!", linear=["self"], moves=False,
)  # fmt: skip
rule(
    aten.view_as_complex.default, aten.view_as_complex_copy.default,
    spec="d... pair! -> d...", linear=["self"], moves=False,
)  # fmt: skip
rule(aten.real.default, aten.imag.default, spec="d... -> d...", linear=["self"], moves=False)


def _bits(call: Call) -> str:
    """A view as another dtype: the last dim's elements are cut up or joined."""
    before, after = call.shapes[0], call.out
    if not before or before[-1] == after[-1]:
        return "d... -> d..."
    if before[-1] < after[-1]:
        return f"d... n -> d... (n k={after[-1] // before[-1]}!)"
    return f"d... (n k={before[-1] // after[-1]}!) -> d... n"


rule(aten.view.dtype, aten.view_copy.dtype, spec=_bits, detached=True, moves=False)


def _strided(call: Call) -> str:
    """A reshape where the strides are those of one; else all dims are whole.

    Raises:
        Refusal: the operand's own strides are not those of its shape, which is all that is known
            of a tensor that has been moved.
    """
    source = tensor_of(call.operands[0])
    if not source.is_contiguous() or source.storage_offset():
        raise Refusal("as_strided on a tensor that is not contiguous")
    plain = torch.empty(call.out, device="meta").stride()
    count = torch.Size(call.out).numel()
    if (
        tuple(call.integers("stride")) == plain
        and not call["storage_offset"]
        and count == source.numel()
    ):
        return _reshape(call)
    before = [f"x{i}!" for i in range(len(call.shapes[0]))]
    return arrow([before], [[f"y{i}!" for i in range(len(call.out))]])


rule(
    aten.as_strided.default, aten.as_strided_copy.default,
    spec=_strided, linear=["self"], localize=to_reshape,
)  # fmt: skip
