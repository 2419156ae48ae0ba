"""`precision` beside the model: the types that it states, and those that do not fit."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from shardlang.grammar.diagnostics import Diagnostic, error
from shardlang.ir.leaf import Leaf
from shardlang.ir.precision import Precision
from shardlang.ir.printed_type import dtype_name
from shardlang.spec.types import PrecisionDecl, TypeDecl

_STATED = {"f32": torch.float32}


def precision_of(stated: PrecisionDecl) -> Precision:
    """The types that a spec states beside those of the model."""
    return Precision(_dtype(stated.reduce), _dtype(stated.master))


def _dtype(stated: TypeDecl | None) -> torch.dtype | None:
    return None if stated is None else _STATED[stated.dtype]


def check_precision(stated: PrecisionDecl, leaves: Iterable[Leaf]) -> list[Diagnostic]:
    """What does not fit the parameters: types that are narrower than theirs."""
    trained = [x for x in leaves if x.trainable and x.dtype.is_floating_point]
    keys = {"reduce": stated.reduce, "master": stated.master}
    return [
        _narrow(key, one, wide[0])
        for key, one in keys.items()
        if one is not None
        and (wide := [x for x in trained if x.dtype.itemsize > _STATED[one.dtype].itemsize])
    ]


def _narrow(key: str, stated: TypeDecl, leaf: Leaf) -> Diagnostic:
    message = f"`{leaf.name}` is {dtype_name(leaf.dtype)}, wider than `{key} = {stated.dtype}`"
    help = f"remove `{key}`, or build the model with narrower parameters"
    return error("SH0243", message, stated.span, help=help)
