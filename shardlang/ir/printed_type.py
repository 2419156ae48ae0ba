"""The printed type of a value: its dtype by a short name, and its layout."""

from __future__ import annotations

import torch

from shardlang.ir.layout import Layout

_SHORT = {
    "torch.float64": "f64", "torch.float32": "f32", "torch.float16": "f16",
    "torch.bfloat16": "bf16",
    "torch.int64": "i64", "torch.int32": "i32", "torch.int16": "i16", "torch.int8": "i8",
    "torch.uint8": "u8", "torch.bool": "bool", "torch.complex64": "c64", "torch.complex128": "c128",
}  # fmt: skip


def dtype_name(dtype: object) -> str:
    """The short name of a torch dtype, as the language writes it."""
    return _SHORT.get(str(dtype), str(dtype).removeprefix("torch."))


def dtype_of(name: str) -> torch.dtype | None:
    """The torch dtype of a short name; None if there is none."""
    full = next((known for known, short in _SHORT.items() if short == name), name)
    found = getattr(torch, full.removeprefix("torch."), None)
    return found if isinstance(found, torch.dtype) else None


def printed_type(dtype: object, layout: Layout) -> str:
    """The printed type of a value: `f32[8@dp, 128, 2304@tp(3)] +ep ~cp`."""
    return dtype_name(dtype) + str(layout)
