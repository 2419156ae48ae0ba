"""What a step computes beside the peak that `cluster` states."""

from __future__ import annotations

from collections.abc import Iterator

from shardlang.compiler.driver import Compiled
from shardlang.cost.model_flops import model_flops
from shardlang.ir.printed_type import dtype_name
from shardlang.runtime.trainer.work import Work

TOLD_FROM = 0.01
"""The part of a step's products in a type without a peak from which on it is said."""


def work_of(compiled: Compiled) -> Work | None:
    """The products of a step at the peak of the devices; None where no peak is stated.

    Products in a type without a peak of its own count at the greatest one, so that too little is
    said of their use, and never too much.
    """
    peaks = {one.dtype: one.flops_per_s for one in compiled.spec.peaks}
    found = _by_type(compiled) if peaks else {}
    if not any(found.values()):
        return None
    most = max(peaks.values())
    seconds = sum(flops / peaks.get(dtype, most) for dtype, flops in found.items())
    shapes = {one.name: one.shape for one in compiled.inputs}
    return Work(seconds / compiled.program.mesh.devices, shapes)


def without_peak(compiled: Compiled) -> Iterator[str]:
    """What to say of products in types whose peak is not stated."""
    stated = [one.dtype for one in compiled.spec.peaks]
    found = _by_type(compiled) if stated else {}
    whole = sum(found.values())
    for dtype, flops in found.items():
        if dtype not in stated and flops >= TOLD_FROM * whole:
            yield (
                f"{flops / whole:.0%} of the model's products are made in {dtype}, of which"
                " `cluster` states no peak: `mfu` counts them at the greatest one that it states"
            )


def _by_type(compiled: Compiled) -> dict[str, int]:
    return {dtype_name(dtype): flops for dtype, flops in model_flops(compiled.program).items()}
