"""Rules of ops on lists of tensors: element i of every list goes with element i of the others."""

from __future__ import annotations

from shardlang.ir.compat import OpOverload
from shardlang.ir.node import tensor_of
from shardlang.ir.traits import OpKind
from shardlang.rules.call import Call, shape_of
from shardlang.rules.registry import in_torch, rule
from shardlang.rules.writing import arrow, names


def _dims(shape: tuple[int, ...], out: tuple[int, ...], index: int) -> list[str]:
    """Dims of one element, broadcast to the result of its place."""
    result = names(len(out), f"t{index}d")
    skip = len(out) - len(shape)
    return ["1" if size == 1 != out[skip + i] else result[skip + i] for i, size in enumerate(shape)]


def _each(call: Call) -> str:
    """Element by element; a tensor outside the lists holds numbers and stays whole."""
    outs, operands = call.result_shapes, []
    for slot in call.slots:
        shape = shape_of(tensor_of(slot.node))
        if slot.index is None:
            operands.append([f"s{i}!" for i in range(len(shape))])
        else:
            operands.append(_dims(shape, outs[slot.index], slot.index))
    return arrow(operands, [names(len(out), f"t{i}d") for i, out in enumerate(outs)])


_POINTWISE = """
    abs acos add addcdiv addcmul asin atan ceil clamp_max clamp_min clone copy cos cosh div erf erfc
    exp expm1 floor frac lerp lgamma log log10 log1p log2 maximum minimum mul neg pow reciprocal
    round rsqrt sigmoid sign sin sinh sqrt sub tan tanh trunc zero
"""


def _lists(which: str) -> list[OpOverload]:
    """Overloads on lists that give new tensors."""
    return in_torch(*(f"_foreach_{name}" for name in which.split()))


rule(*_lists(_POINTWISE), spec=_each)


def _reduced(call: Call, mark: str) -> str:
    """Every tensor reduced to one number."""
    operands = [
        [name + mark for name in names(len(shape), f"t{i}d")] for i, shape in enumerate(call.shapes)
    ]
    return arrow(operands, [[]] * len(operands))


rule(*_lists("norm max"), spec=lambda call: _reduced(call, "!"))
rule(*_lists("powsum"), spec=lambda call: _reduced(call, ""))


def _products(call: Call) -> str:
    count = len(call.result_shapes)
    left = [[f"m{i}", f"k{i}"] for i in range(count)]
    right = [[f"k{i}", f"n{i}"] for i in range(count)]
    return arrow([*left, *right], [[f"m{i}", f"n{i}"] for i in range(count)])


rule(
    *_lists("mm"),
    spec=_products, linear=["self", "mat2"], passes=False, kind=OpKind.PRODUCT,
    flops=lambda call: [f"self.{i} mat2.{i}" for i in range(len(call.sequence("self")))],
)  # fmt: skip
