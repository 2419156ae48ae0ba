"""Random ops, in two modes.

*Exact*: every device draws the numbers of the whole tensor, as one device would, and keeps its
part. All devices start from one seed, so what is not split is the same everywhere.

*Fast*: every device draws its part alone, from a stream that the devices with that part share
(`shardlang.rules.streams`).
"""

from __future__ import annotations

import torch
from torch import fx

from shardlang.ir.device_values import LocalSize, PartNumber, size_at
from shardlang.ir.layout import Layout
from shardlang.ir.node import info
from shardlang.ir.rule import Sharding
from shardlang.rules import dropout, local, streams
from shardlang.rules.call import Call, LocalCall
from shardlang.rules.local_shape import PlaceArgument, place
from shardlang.rules.op_rule import Streams
from shardlang.rules.registry import rule
from shardlang.rules.shapes import broadcast, fixed, signature, whole
from shardlang.rules.writing import names as names_of
from shardlang.rules.writing import tensor

aten = torch.ops.aten


def _places(layout: Layout) -> list[PlaceArgument]:
    """Where a device's shard lies in each dim."""
    return [place(dim) for dim in layout.dims]


def _sizes(layout: Layout) -> list[int | LocalSize]:
    """The local shape."""
    return [size_at(dim) for dim in layout.dims]


def _split(sharding: Sharding) -> bool:
    return bool(sharding.result().sharded)


def _strides(call: Call) -> tuple[int, ...]:
    """The memory order of the global tensor in the model, which is the order of the draws."""
    order = info(call.node).draws_in
    assert order is not None, "bind_rules records the order"
    return order


def _same(call: Call) -> str:
    return fixed(call, ())


def _stream(layout: Layout, source: Streams, dims: int | None = None) -> tuple[object, ...]:
    """Key, draw and part of what is drawn for a layout, or for its first dims."""
    axes = tuple(axis for dim in layout.dims[:dims] for axis in dim.axes)
    return (*source.take(), PartNumber(axes))


def _returns_operand(call: Call) -> bool:
    """Whether a dropout is switched off."""
    return not call.flag("train") or call.number("p") == 0


def _drops(call: Call) -> bool:
    return call["train"] is not False and call.number("p") != 0


def _dropout(call: Call, sharding: Sharding) -> LocalCall:
    if not _drops(call) or not _split(sharding):
        return call.replace()
    x, layout = call.operand("input"), sharding.result()
    args = (x, call.target, _places(layout), layout.shape, _strides(call), call["p"])
    return dropout.dropped, args, {}


def _native_dropout(call: Call, sharding: Sharding) -> LocalCall:
    if not _drops(call) or not _split(sharding):
        return call.replace()
    x, layout = call.operand("input"), sharding.result()
    args = (x, _places(layout), layout.shape, _strides(call), call["p"])
    return dropout.dropped_with_mask, args, {}


def _dropout_apart(call: Call, sharding: Sharding, source: Streams) -> LocalCall:
    if not _drops(call):
        return call.replace()
    dims = 2 if call.target is aten.feature_dropout.default else None
    stream = _stream(sharding.result(), source, dims)
    return streams.dropped_apart, (call.operand("input"), *stream, call["p"], dims), {}


def _native_dropout_apart(call: Call, sharding: Sharding, source: Streams) -> LocalCall:
    if not _drops(call):
        return call.replace()
    stream = _stream(sharding.result(), source)
    return streams.dropped_with_mask_apart, (call.operand("input"), *stream, call["p"]), {}


rule(
    aten.dropout, aten.feature_dropout, spec=_same, localize=_dropout, fast=_dropout_apart,
    linear=["input"], random=_drops, view=_returns_operand,
)  # fmt: skip
rule(
    aten.native_dropout, spec=_same, localize=_native_dropout, fast=_native_dropout_apart,
    random=_drops, keeps="result.1",
)  # fmt: skip


def _made(call: Call) -> str:
    return signature([], [tensor(names_of(len(call.out)))])


def _draw(call: Call, sharding: Sharding) -> LocalCall:
    if not _split(sharding):
        return call.replace()
    layout = sharding.result()
    target, args, kwargs = call.replace()
    return local.drawn, (target, _places(layout), _sizes(layout), *args), kwargs


def _draw_apart(call: Call, sharding: Sharding, source: Streams) -> LocalCall:
    layout = sharding.result()
    changes = {"size": _sizes(layout)} if "size" in call.names else {}
    _, args, kwargs = call.replace(**changes)
    op = streams.on_stream(call.overload)
    return streams.drawn_apart, (op, *_stream(layout, source), *args), kwargs


rule(
    aten.rand.default, aten.randn.default, aten.randint.default, aten.randint.low,
    aten.normal.float_float,
    spec=_made, localize=_draw, fast=_draw_apart, random=True,
)  # fmt: skip


def _alpha_dropout_apart(call: Call, sharding: Sharding, source: Streams) -> LocalCall:
    if not _drops(call):
        return call.replace()
    dims = 2 if call.target is aten.feature_alpha_dropout.default else None
    stream = _stream(sharding.result(), source, dims)
    return streams.alpha_dropped_apart, (call.operand("input"), *stream, call["p"], dims), {}


def _rrelu_apart(call: Call, sharding: Sharding, source: Streams) -> LocalCall:
    if not call.flag("training"):
        return call.replace()
    slopes = streams.on_stream(aten.uniform.default)
    stream = _stream(sharding.result(), source)
    bounds = (call["lower"], call["upper"])
    return streams.rrelu_apart, (slopes, call.operand("self"), *stream, *bounds), {}


def _rows(call: Call) -> str:
    """Samples of each row of weights, `b... k` to `b... n`."""
    batch = names_of(len(call.out) - 1)
    return signature([tensor([*batch, "k!"])], [tensor([*batch, "n!"])])


# The mask is mixed into the values, or the number of draws depends on the data: one device's draws
# are not the sum of its parts' draws, and in the exact mode everything stays whole.
rule(
    aten.alpha_dropout, aten.feature_alpha_dropout,
    spec=whole, fast_spec=_same, fast=_alpha_dropout_apart, random=True, keeps="",
    view=_returns_operand,
)  # fmt: skip
rule(aten.rrelu, spec=whole, fast_spec=_same, fast=_rrelu_apart, random=True)
rule(aten.poisson, spec=whole, fast_spec=_same, fast=_draw_apart, random=True)
rule(aten.binomial, spec=whole, fast_spec=broadcast, fast=_draw_apart, random=True)
rule(aten.multinomial, spec=whole, fast_spec=_rows, fast=_draw_apart, random=True)
rule(
    aten._standard_gamma, aten._sample_dirichlet, aten.rrelu_with_noise_functional,
    spec=whole, random=True,
)  # fmt: skip
# A permutation is not a set of independent draws: each device makes the whole one.
rule(aten.randperm.default, spec=_made, localize=_draw, random=True)


def _draw_like(call: Call, sharding: Sharding) -> LocalCall:
    if not _split(sharding):
        return call.replace()
    layout = sharding.result()
    target, (x, *rest), kwargs = call.replace()
    order = (_places(layout), layout.shape, _strides(call))
    return local.drawn_like, (x, target, *order, *rest), kwargs


rule(
    aten.rand_like, aten.randn_like, aten.randint_like.default, aten.randint_like.low_dtype,
    aten.bernoulli.p, aten.uniform, aten.exponential, aten.cauchy, aten.geometric,
    aten.log_normal, aten.random, aten.normal_functional,
    spec=_same, localize=_draw_like, fast=_draw_apart, random=True, detached=True,
)  # fmt: skip


def _draw_by(call: Call, sharding: Sharding) -> LocalCall:
    """Each element has its own parameters: one draw each, in the order of the whole tensor."""
    if not _split(sharding):
        return call.replace()
    given = [call[name] for name in call.names if name in ("self", "mean", "std")]
    layout, operands = sharding.result(), [sharding.operand(i) for i in range(len(call.operands))]
    mine = iter(operands)
    each = [next(mine) if isinstance(p, fx.Node) else Layout(()) for p in given]
    shapes, places = [one.shape for one in each], [_places(one) for one in each]
    steps = _strides(call) if each[0].shape == layout.shape else None
    args = (given, call.target, shapes, places, _places(layout), _sizes(layout), steps)
    return local.drawn_by, args, {}


rule(
    aten.bernoulli.default, aten.normal.Tensor_float, aten.normal.float_Tensor,
    aten.normal.Tensor_Tensor, spec=broadcast, localize=_draw_by, fast=_draw_apart, random=True,
    detached=True,
)  # fmt: skip
