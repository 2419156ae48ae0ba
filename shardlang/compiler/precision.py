"""`precision` beside the model: the types that it states, and those that do not fit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from shardlang.capture import Captured
from shardlang.grammar.diagnostics import Diagnostic, error
from shardlang.ir.leaf import Leaf
from shardlang.ir.node import tensors_of
from shardlang.ir.precision import LossScale, Precision
from shardlang.ir.printed_type import dtype_name
from shardlang.spec.types import PrecisionDecl, Spec, TypeDecl

_STATED = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}


def precision_of(stated: PrecisionDecl) -> Precision:
    """The types that a spec states beside those of the model.

    Where the model computes in a narrower type than its parameters have, gradients are reduced in
    f32 unless the spec says otherwise.
    """
    compute, reduce = _dtype(stated.compute), _dtype(stated.reduce)
    if compute is not None and reduce is None:
        reduce = torch.float32
    scale = None
    if stated.loss_scale is not None:
        factor = stated.loss_scale.factor
        scale = LossScale() if factor is None else LossScale(factor, dynamic=False)
    return Precision(compute, reduce, _dtype(stated.master), scale)


def _dtype(stated: TypeDecl | None) -> torch.dtype | None:
    return None if stated is None else _STATED[stated.dtype]


def check_precision(spec: Spec, captured: Captured) -> list[Diagnostic]:
    """What does not fit the model: narrower types than its own, a factor that is not needed, or
    one that is missing; and warnings of types that change nothing."""
    trained = [x for x in captured.leaves if x.trainable and x.dtype.is_floating_point]
    types, idle = _types(spec.precision, trained), _idle(spec.precision, trained)
    return [*types, *idle, *_scaling(spec, captured, trained)]


def _idle(stated: PrecisionDecl, trained: Sequence[Leaf]) -> Iterator[Diagnostic]:
    """A warning of each type that is stated and changes nothing, as no parameter is narrower."""
    changed = {"master": "the optimizer updates the parameters themselves"}
    if stated.compute is None:
        changed["reduce"] = "gradients are summed in their own type"
    for key, instead in changed.items():
        one: TypeDecl | None = getattr(stated, key)
        if one is None or any(x.dtype.itemsize != _STATED[one.dtype].itemsize for x in trained):
            continue
        message = f"`{key} = {one.dtype}` changes nothing: no parameter is narrower, so {instead}"
        help = f"remove `{key}`, or build the model with narrower parameters"
        yield Diagnostic("SH0250", "warning", message, one.span, help=help)


def _scaling(spec: Spec, captured: Captured, trained: Sequence[Leaf]) -> Iterator[Diagnostic]:
    stated, half = spec.precision.loss_scale, _computes_half(captured)
    small = [x for x in trained if x.dtype is torch.float16]
    if stated is None and half and trained:
        yield Diagnostic(
            "SH0244",
            "warning",
            "the model computes in f16, in which small gradients vanish",
            spec.model.span,
            help="state `precision { loss_scale = dynamic }`, or compute in bf16",
        )
    if stated is not None and not half:
        message = "nothing is computed in f16, so a scaled loss changes no gradient"
        yield error("SH0243", message, stated.span, help="remove `loss_scale`")
    elif stated is not None and small and spec.precision.master is None:
        message = f"`{small[0].name}` is f16, in which its gradient vanishes when it is unscaled"
        yield error("SH0243", message, stated.span, help="state `master = f32` beside it")


def _computes_half(captured: Captured) -> bool:
    """Whether any op gives numbers in f16."""
    calls = (node for node in captured.graph.nodes if node.op == "call_function")
    return any(x.dtype is torch.float16 for node in calls for x in tensors_of(node))


def _types(stated: PrecisionDecl, trained: Sequence[Leaf]) -> list[Diagnostic]:
    keys = {"reduce": stated.reduce, "master": stated.master}
    compute = stated.compute
    if compute is not None and not any(x.computes for x in trained):
        message = f"no parameter is wider than `compute = {compute.dtype}`"
        help = "remove `compute`, or build the model with wider parameters"
        return [error("SH0243", message, compute.span, help=help)]
    cast = [x for x in trained if x.computes or compute is None]
    return [
        _narrow(key, one, wide[0])
        for key, one in keys.items()
        if one is not None
        and (
            wide := [
                x for x in cast if (x.computes or x.dtype).itemsize > _STATED[one.dtype].itemsize
            ]
        )
    ]


def _narrow(key: str, stated: TypeDecl, leaf: Leaf) -> Diagnostic:
    message = f"`{leaf.name}` is {dtype_name(leaf.dtype)}, wider than `{key} = {stated.dtype}`"
    help = f"remove `{key}`, or build the model with narrower parameters"
    return error("SH0243", message, stated.span, help=help)
