"""Rules of ops on images: pooling, resizing, patches; the spatial dims stay whole."""

from __future__ import annotations

import torch

from shardlang.ir.here import size_at
from shardlang.ir.rule import Sharding
from shardlang.rules.call import Call, LocalCall
from shardlang.rules.registry import rule
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
    aten.avg_pool1d.default, aten.adaptive_avg_pool1d.default,
    aten.upsample_linear1d.default, aten.upsample_nearest1d.default,
    aten.upsample_linear1d.vec, aten.upsample_nearest1d.vec,
    aten._upsample_nearest_exact1d.default, aten._upsample_nearest_exact1d.vec,
    spec=lambda call: _spatial(call, 1), linear=_averages,
)  # fmt: skip
rule(
    aten.avg_pool2d.default, aten.adaptive_avg_pool2d.default, aten._adaptive_avg_pool2d.default,
    aten.upsample_bilinear2d.default, aten.upsample_nearest2d.default,
    aten.upsample_bicubic2d.default, aten._upsample_nearest_exact2d.default,
    aten._upsample_bilinear2d_aa.default, aten._upsample_bicubic2d_aa.default,
    aten.upsample_bilinear2d.vec, aten.upsample_nearest2d.vec, aten.upsample_bicubic2d.vec,
    aten._upsample_nearest_exact2d.vec, aten._upsample_bilinear2d_aa.vec,
    aten._upsample_bicubic2d_aa.vec,
    spec=lambda call: _spatial(call, 2), linear=_averages,
)  # fmt: skip
rule(
    aten.avg_pool3d.default, aten.adaptive_avg_pool3d.default, aten._adaptive_avg_pool3d.default,
    aten.upsample_trilinear3d.default, aten.upsample_nearest3d.default,
    aten._upsample_nearest_exact3d.default, aten.upsample_trilinear3d.vec,
    aten.upsample_nearest3d.vec, aten._upsample_nearest_exact3d.vec,
    spec=lambda call: _spatial(call, 3), linear=_averages,
)  # fmt: skip
rule(
    aten.max_pool1d.default, aten.max_pool1d_with_indices.default,
    aten.adaptive_max_pool1d.default, spec=lambda call: _spatial(call, 1),
)  # fmt: skip
rule(
    aten.max_pool2d.default, aten.max_pool2d_with_indices.default,
    aten.adaptive_max_pool2d.default, spec=lambda call: _spatial(call, 2),
)  # fmt: skip
rule(
    aten.max_pool3d.default, aten.max_pool3d_with_indices.default,
    aten.adaptive_max_pool3d.default, spec=lambda call: _spatial(call, 3),
)  # fmt: skip


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
    factor = call["upscale_factor" if grows else "downscale_factor"]
    kept = names(len(call.shapes[0]) - 3)
    deep = [*kept, f"(c r={factor}! s={factor}!)", "h", "w"]
    wide = [*kept, "c", "(h r!)", "(w s!)"]
    return arrow([deep], [wide]) if grows else arrow([wide], [deep])


rule(aten.pixel_shuffle.default, spec=lambda call: _shuffle(call, True), linear=["self"])
rule(aten.pixel_unshuffle.default, spec=lambda call: _shuffle(call, False), linear=["self"])


def _channel_shuffle(call: Call) -> str:
    groups = call["groups"]
    rest = tensor(names(len(call.shapes[0]) - 2, "x"))
    return f"n (g={groups}! c!) {rest} -> n (c! g!) {rest}"


rule(aten.channel_shuffle.default, aten.native_channel_shuffle.default, spec=_channel_shuffle,
     linear=["self"])  # fmt: skip


def _im2col(call: Call) -> str:
    """Patches as columns: channels stand before the places of the kernel."""
    kernel = f"k={call['kernel_size'][0] * call['kernel_size'][1]}!"
    kept = names(len(call.shapes[0]) - 3)
    return arrow([[*kept, "c", "h!", "w!"]], [[*kept, f"(c {kernel})", "l!"]])


def _col2im(call: Call) -> str:
    kernel = f"k={call['kernel_size'][0] * call['kernel_size'][1]}!"
    kept = names(len(call.shapes[0]) - 2)
    return arrow([[*kept, f"(c {kernel})", "l!"]], [[*kept, "c", "h!", "w!"]])


rule(aten.im2col.default, spec=_im2col, linear=["self"])
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
    return call.replace(size=[size_at(sharding.factors["n"]), *call["size"][1:]])


rule(
    aten.affine_grid_generator.default,
    spec=_affine_grid, linear=["theta"], localize=_local_affine_grid,
)  # fmt: skip
