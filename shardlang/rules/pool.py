"""Rules of ops on images: pooling, resizing, patches.

Plain pooling may be split over its spatial dims, with halos, and so may the rows of patches; in all
others they stay whole.
"""

from __future__ import annotations

import math

import torch
from torch import fx

from shardlang.ir.device_values import size_at
from shardlang.ir.rule import Sharding
from shardlang.rules import local_window
from shardlang.rules.call import Call, LocalCall
from shardlang.rules.op_rule import Emit
from shardlang.rules.registry import in_torch, rule
from shardlang.rules.window import Sliding, halo, per_dim
from shardlang.rules.writing import arrow, names, tensor

aten = torch.ops.aten


def _spatial(call: Call, spatial: int) -> str:
    """Leading dims outer, the last `spatial` ones whole before and after."""
    kept = names(len(call.shapes[0]) - spatial)
    before = [f"{name}!" for name in names(spatial, "x")]
    after = [*kept, *(f"{name}!" for name in names(spatial, "y"))]
    return arrow([[*kept, *before]], [after] * len(call.results))


def _averages(call: Call) -> list[str]:
    """Averages are linear, but for integers, which are rounded."""
    inexact = call.results[0].is_floating_point() or call.results[0].is_complex()
    return [call.slots[0].name] if inexact else []


rule(
    aten.upsample_linear1d.default, aten.upsample_nearest1d.default,
    aten.upsample_linear1d.vec, aten.upsample_nearest1d.vec,
    aten._upsample_nearest_exact1d.default, aten._upsample_nearest_exact1d.vec,
    spec=lambda call: _spatial(call, 1), linear=_averages,
)  # fmt: skip
rule(
    aten.upsample_bilinear2d.default, aten.upsample_nearest2d.default,
    aten.upsample_bicubic2d.default, aten._upsample_nearest_exact2d.default,
    aten._upsample_bilinear2d_aa.default, aten._upsample_bicubic2d_aa.default,
    aten.upsample_bilinear2d.vec, aten.upsample_nearest2d.vec, aten.upsample_bicubic2d.vec,
    aten._upsample_nearest_exact2d.vec, aten._upsample_bilinear2d_aa.vec,
    aten._upsample_bicubic2d_aa.vec, *in_torch("_upsample_lanczos2d_aa.default"),
    spec=lambda call: _spatial(call, 2), linear=_averages,
)  # fmt: skip
rule(
    aten.upsample_trilinear3d.default, aten.upsample_nearest3d.default,
    aten._upsample_nearest_exact3d.default, aten.upsample_trilinear3d.vec,
    aten.upsample_nearest3d.vec, aten._upsample_nearest_exact3d.vec,
    spec=lambda call: _spatial(call, 3), linear=_averages,
)  # fmt: skip
rule(
    aten.max_pool1d_with_indices.default,
    aten.adaptive_max_pool1d.default, spec=lambda call: _spatial(call, 1), keeps="self result.1",
)  # fmt: skip
rule(
    aten.max_pool2d_with_indices.default,
    aten.adaptive_max_pool2d.default, spec=lambda call: _spatial(call, 2), keeps="self result.1",
)  # fmt: skip
rule(
    aten.max_pool3d_with_indices.default,
    aten.adaptive_max_pool3d.default, spec=lambda call: _spatial(call, 3), keeps="self result.1",
)  # fmt: skip


def _rank(call: Call) -> int:
    """Number of spatial dims, the digit in the op's name."""
    return int(next(c for c in str(call.target) if c.isdigit()))


def _sliding(call: Call) -> list[Sliding]:
    """How a pooling reads its spatial dims."""
    shape, count = call.shapes[0], _rank(call)
    kernels = per_dim(call["kernel_size"], count)
    strides = per_dim(call["stride"], count) if call["stride"] else kernels
    pads, dilations = per_dim(call["padding"], count), per_dim(call.get("dilation", 1), count)
    first = len(shape) - count
    return [
        Sliding(first + i, i, shape[first + i], kernels[i], strides[i], pads[i], dilations[i])
        for i in range(count)
    ]


def _is_max(call: Call) -> bool:
    return "max" in str(call.target)


def _even(call: Call) -> bool:
    """Whether every output reads as many indices as the kernel has, or need not count them."""
    if _is_max(call):
        return True
    padded = any(per_dim(call["padding"], 1)) and not call.flag("count_include_pad", True)
    return not (call.flag("ceil_mode") or padded)


def _pool(call: Call) -> str:
    if not _even(call):
        return _spatial(call, _rank(call))
    kept = names(len(call.shapes[0]) - _rank(call))
    factors = [one.factors for one in _sliding(call)]
    before, after = [f[0] for f in factors], [f[2] for f in factors]
    return arrow([[*kept, *before]], [[*kept, *after]])


def _lowest(call: Call) -> float:
    """What stands outside the tensor: nothing to an average, less than anything to a maximum."""
    dtype = call.results[0].dtype
    if not _is_max(call):
        return 0.0
    return -torch.inf if dtype.is_floating_point else torch.iinfo(dtype).min


def _lower_pool(call: Call, sharding: Sharding, emit: Emit) -> fx.Node:
    """Windows, and a pooling over them without padding."""
    dims = _sliding(call)
    split = [one for one in dims if one.split_in(sharding)]
    x = halo(call.operand("self"), sharding, emit, dims, _lowest(call))
    pads = [0 if one in split else one.pad for one in dims]
    strides = [one.stride for one in dims]
    arguments: list[object] = [[one.kernel for one in dims], strides, pads]
    if "dilation" in call.names:
        arguments += [[one.dilation for one in dims], call.flag("ceil_mode")]
    elif call.get("divisor_override") is not None:
        arguments += [False, True, call["divisor_override"]]
    places = [one.dim for one in split]
    sizes = [call.out[place] for place in places]
    return emit(local_window.pool, x, call.target, arguments, places, sizes)


rule(
    aten.avg_pool1d.default, aten.avg_pool2d.default, aten.avg_pool3d.default,
    spec=_pool, linear=_averages, lower=_lower_pool, keeps="self",
)  # fmt: skip
rule(
    aten.max_pool1d.default, aten.max_pool2d.default, aten.max_pool3d.default,
    spec=_pool, lower=_lower_pool,
)  # fmt: skip


def _adaptive(call: Call) -> str:
    """Where the outputs divide the dim, each is the mean of its own stretch."""
    count = _rank(call)
    kept = names(len(call.shapes[0]) - count)
    sizes = list(zip(call.shapes[0][-count:], call.out[-count:], strict=True))
    if any(not after or before % after for before, after in sizes):
        return _spatial(call, count)
    before = [f"(y{i}={b} k{i}={a // b}~)" for i, (a, b) in enumerate(sizes)]
    return arrow([[*kept, *before]], [[*kept, *names(count, "y")]])


def _local_adaptive(call: Call, sharding: Sharding) -> LocalCall:
    dims = sharding.result().dims[-_rank(call) :]
    return call.replace(output_size=[size_at(dim) for dim in dims])


def _lower_adaptive(call: Call, sharding: Sharding, emit: Emit) -> fx.Node:
    """The mean over each stretch."""
    shape, count = call.shapes[0], _rank(call)
    kept = len(shape) - count
    cut = [size for a, b in zip(shape[kept:], call.out[kept:], strict=True) for size in (b, a // b)]
    x = emit(aten.reshape.default, call.operand("self"), [*shape[:kept], *cut])
    return emit(aten.mean.dim, x, [kept + 1 + 2 * i for i in range(count)])


rule(
    aten.adaptive_avg_pool1d.default,
    aten.adaptive_avg_pool2d.default, aten._adaptive_avg_pool2d.default,
    aten.adaptive_avg_pool3d.default, aten._adaptive_avg_pool3d.default,
    spec=_adaptive, linear=_averages, localize=_local_adaptive, lower=_lower_adaptive,
    keeps="self",
)  # fmt: skip


def _over_windows(call: Call) -> str:
    """Rows of windows are split as the outputs are; the other spatial dims stay whole."""
    shape, given = call.shapes[0], call.sequence("arguments")
    count = len(per_dim(given[0], 1))
    kernel, stride, pad = (per_dim(each, count) for each in given[:3])
    kept, split = len(shape) - count, call.integers("dims")
    dilation = per_dim(given[3] if "max" in str(call["op"]) else 1, count)
    before, after = names(len(shape)), names(len(shape))
    for i in range(count):
        dim = kept + i
        one = Sliding(dim, i, shape[dim], kernel[i], stride[i], pad[i], dilation[i])
        if dim in split:
            before[dim], after[dim] = f"x{i}", f"y{i}@x{i}"
        elif "~" in one.factors[0]:
            before[dim], after[dim] = f"x{i}!", f"y{i}!"
        else:
            before[dim], after[dim] = one.factors[0], one.factors[2]
    return arrow([before], [after])


def _pool_linear(call: Call) -> list[str]:
    inexact = call.results[0].is_floating_point()
    return ["x"] if inexact and "avg" in str(call["op"]) else []


def _local_windows(call: Call, sharding: Sharding) -> LocalCall:
    result = sharding.result().dims
    return call.replace(sizes=[size_at(result[dim]) for dim in call.integers("dims")])


rule(local_window.pool, spec=_over_windows, linear=_pool_linear, localize=_local_windows)


def _with_table(call: Call, spatial: int) -> str:
    """The operand and a second one of the same leading dims."""
    kept = names(len(call.shapes[0]) - spatial)
    operands = [
        [*kept, *(f"{name}!" for name in names(spatial, f"x{i}d"))] for i in range(len(call.shapes))
    ]
    return arrow(operands, [[*kept, *(f"{name}!" for name in names(spatial, "y"))]])


rule(aten.max_unpool2d.default, spec=lambda call: _with_table(call, 2), linear=["self"])
rule(aten.max_unpool3d.default, spec=lambda call: _with_table(call, 3), linear=["self"])


def _fractional(call: Call, spatial: int) -> str:
    """Pooling over random regions, which every image and channel has of its own."""
    kept = names(len(call.shapes[0]) - spatial)
    batch = kept if len(kept) == 2 else ["1", *kept]
    before = [*kept, *(f"{name}!" for name in names(spatial, "x"))]
    after = [*kept, *(f"{name}!" for name in names(spatial, "y"))]
    return arrow([before, [*batch, "r!"]], [after, after])


rule(aten.fractional_max_pool2d.default, spec=lambda call: _fractional(call, 2))
rule(aten.fractional_max_pool3d.default, spec=lambda call: _fractional(call, 3))


def _shuffle(call: Call, grows: bool) -> str:
    """Blocks of channels laid out as blocks of pixels, or back."""
    factor = call.integer("upscale_factor" if grows else "downscale_factor")
    kept = names(len(call.shapes[0]) - 3)
    deep = [*kept, f"(c r={factor}! s={factor}!)", "h", "w"]
    wide = [*kept, "c", "(h r!)", "(w s!)"]
    return arrow([deep], [wide]) if grows else arrow([wide], [deep])


rule(aten.pixel_shuffle.default, spec=lambda call: _shuffle(call, True), linear=["self"])
rule(aten.pixel_unshuffle.default, spec=lambda call: _shuffle(call, False), linear=["self"])


def _channel_shuffle(call: Call) -> str:
    groups = call.integer("groups")
    rest = tensor(names(len(call.shapes[0]) - 2, "x"))
    return f"n (g={groups}! c!) {rest} -> n (c! g!) {rest}"


rule(aten.channel_shuffle.default, aten.native_channel_shuffle.default, spec=_channel_shuffle,
     linear=["self"])  # fmt: skip


def _im2col(call: Call) -> str:
    """Patches as columns: channels stand before the places of the kernel."""
    kernel = f"k={math.prod(call.integers('kernel_size'))}!"
    kept, (rows, columns) = names(len(call.shapes[0]) - 3), _patches(call)
    places = f"(y0={rows.outputs}@x0 y1={columns.outputs}!)"
    return arrow([[*kept, "c", "x0~", "w!"]], [[*kept, f"(c {kernel})", places]])


def _patches(call: Call) -> list[Sliding]:
    """How patches read rows and columns."""
    shape, first = call.shapes[0], len(call.shapes[0]) - 2
    numbers = [per_dim(call[n], 2) for n in ("kernel_size", "stride", "padding", "dilation")]
    return [Sliding(first + i, i, shape[first + i], *(n[i] for n in numbers)) for i in range(2)]


def _lower_im2col(call: Call, sharding: Sharding, emit: Emit) -> fx.Node:
    """Patches of windows of rows."""
    rows, columns = _patches(call)
    x = halo(call.operand("self"), sharding, emit, [rows])
    numbers = [call["kernel_size"], call["dilation"], [0, columns.pad], call["stride"]]
    return emit(local_window.patches, x, *numbers, rows.outputs, columns.outputs)


def _window_patches(call: Call) -> str:
    kernel = f"k={math.prod(call.integers('kernel_size'))}!"
    kept = names(len(call.shapes[0]) - 3)
    places = f"(y0={call.integer('rows')}@x0 y1={call.integer('columns')}!)"
    return arrow([[*kept, "c", "x0", "w!"]], [[*kept, f"(c {kernel})", places]])


def _local_patches(call: Call, sharding: Sharding) -> LocalCall:
    return call.replace(rows=size_at(sharding.factors["y0"]))


def _col2im(call: Call) -> str:
    kernel = f"k={math.prod(call.integers('kernel_size'))}!"
    kept = names(len(call.shapes[0]) - 2)
    return arrow([[*kept, f"(c {kernel})", "l!"]], [[*kept, "c", "h!", "w!"]])


rule(aten.im2col.default, spec=_im2col, linear=["self"], lower=_lower_im2col)
rule(local_window.patches, spec=_window_patches, linear=["x"], localize=_local_patches)
rule(aten.col2im.default, spec=_col2im, linear=["self"])


def _grid(call: Call) -> str:
    """Sampling at places of a grid: batch, channels and the grid's own dims are outer."""
    spatial = len(call.shapes[0]) - 2
    source = [f"{name}!" for name in names(spatial, "x")]
    places = names(spatial, "y")
    return arrow([["n", "c", *source], ["n", *places, "xy!"]], [["n", "c", *places]])


rule(
    aten.grid_sampler.default, aten.grid_sampler_2d.default, aten.grid_sampler_3d.default,
    spec=_grid, linear=["input"], passes=False,
)  # fmt: skip


def _affine_grid(call: Call) -> str:
    places = [f"{name}!" for name in names(len(call.out) - 2, "y")]
    return arrow([["n", "a!", "b!"]], [["n", *places, "xy!"]])


def _local_affine_grid(call: Call, sharding: Sharding) -> LocalCall:
    return call.replace(size=[size_at(sharding.factors["n"]), *call.sequence("size")[1:]])


rule(
    aten.affine_grid_generator.default,
    spec=_affine_grid, linear=["theta"], localize=_local_affine_grid,
)  # fmt: skip
