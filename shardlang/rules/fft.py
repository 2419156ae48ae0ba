"""Rules of Fourier transforms: linear, the transformed dims whole, all others outer."""

from __future__ import annotations

import torch

from shardlang.ir.device_values import size_at
from shardlang.ir.node import tensor_of
from shardlang.ir.rule import Sharding
from shardlang.rules.call import Call, LocalCall
from shardlang.rules.local import drawn
from shardlang.rules.local_shape import place
from shardlang.rules.registry import rule
from shardlang.rules.writing import arrow, names, with_whole

aten = torch.ops.aten


def _transformed(call: Call) -> set[int]:
    """The dims that are transformed: those named, else the last of the sizes, else all."""
    rank = len(call.shapes[0])
    if call["dim"] is None:
        sized = call.get("s") is not None
        return set(range(rank - len(call.sequence("s")) if sized else 0, rank))
    return set(call.dims()) if rank and call["dim"] not in ([], ()) else set()


def _fft(call: Call) -> str:
    chosen, before = _transformed(call), names(len(call.shapes[0]))
    after = [f"y{i}!" if i in chosen else dim for i, dim in enumerate(before)]
    return arrow([with_whole(before, chosen)], [after])


rule(
    aten._fft_c2c.default, aten._fft_c2r.default, aten._fft_r2c.default,
    aten.fft_fft.default, aten.fft_ifft.default, aten.fft_rfft.default, aten.fft_irfft.default,
    aten.fft_hfft.default, aten.fft_ihfft.default,
    aten.fft_fft2.default, aten.fft_ifft2.default, aten.fft_rfft2.default, aten.fft_irfft2.default,
    aten.fft_hfft2.default, aten.fft_ihfft2.default,
    aten.fft_fftn.default, aten.fft_ifftn.default, aten.fft_rfftn.default, aten.fft_irfftn.default,
    aten.fft_hfftn.default, aten.fft_ihfftn.default,
    aten.fft_fftshift.default, aten.fft_ifftshift.default,
    spec=_fft, linear=["self"], keeps="self",
)  # fmt: skip


def _cut(call: Call, sharding: Sharding) -> LocalCall:
    op, args, kwargs = call.replace()
    dims = sharding.result().dims
    return drawn, (op, [place(dim) for dim in dims], [size_at(dim) for dim in dims], *args), kwargs


rule(aten.fft_fftfreq.default, aten.fft_rfftfreq.default, spec="-> n", localize=_cut)


def _windowed(call: Call) -> str:
    """Short-time transforms: the batch is outer; the window is whole."""
    rank = len(call.shapes[0])
    inverse = call.target is aten.istft.default
    complex_tail = 0 if not inverse or tensor_of(call.slots[0].node).is_complex() else 1
    count = rank - (2 + complex_tail if inverse else 1)
    batch = names(count, "b")
    source = [*batch, *(f"x{i}!" for i in range(rank - count))]
    window = [["w!"]] if call.has("window") else []
    return arrow([source, *window], [[*batch, *(f"y{i}!" for i in range(len(call.out) - count))]])


rule(
    aten.stft.default, aten.stft.center, aten.istft.default,
    spec=_windowed, linear=["self"], passes=False, keeps="self window",
)  # fmt: skip
