"""Ops that work element by element, with broadcasting: every dim is an outer factor."""

from __future__ import annotations

import torch

from shardlang.ir.compat import OpOverloadPacket
from shardlang.ir.node import tensor_of
from shardlang.ir.traits import OpKind
from shardlang.rules.call import Call
from shardlang.rules.registry import rule
from shardlang.rules.shapes import aligned, broadcast, signature
from shardlang.rules.writing import names as names_of
from shardlang.rules.writing import tensor

aten = torch.ops.aten

NONLINEAR_UNARY = """
    abs absolute acos acosh angle arccos arccosh arcsin arcsinh arctan arctanh asin asinh atan atanh
    bitwise_not celu clamp clamp_max clamp_min clip cos cosh digamma elu erf erfc erfinv
    gelu hardshrink hardswish hardtanh i0 isfinite isinf
    isnan isneginf isposinf isreal leaky_relu lgamma log log10 log1p log2 log_sigmoid logical_not
    logit mish mvlgamma nan_to_num polygamma relu6 selu
    signbit silu sin sinc sinh softplus softshrink square threshold log_sigmoid_forward
"""

KEEPS_RESULT = "exp exp2 expm1 reciprocal relu rsqrt sqrt tan tanh"
"""Ops whose derivative is written in their result."""

STEPS = "ceil fix floor frac round sign trunc"
"""Ops whose derivative is a constant."""

SPECIAL_UNARY = """
    airy_ai bessel_j0 bessel_j1 bessel_y0 bessel_y1 digamma entr erf erfc erfinv
    gammaln i0 log1p logit modified_bessel_i0 modified_bessel_i1
    modified_bessel_k0 modified_bessel_k1 multigammaln ndtr polygamma psi
    scaled_modified_bessel_k0 scaled_modified_bessel_k1 sinc spherical_bessel_j0
"""

NONLINEAR_BINARY = """
    __and__ __lshift__ __or__ __rshift__ __xor__ atan2 arctan2 bitwise_and bitwise_left_shift
    bitwise_or bitwise_right_shift bitwise_xor eq fmax fmin fmod
    gcd ge greater greater_equal gt igamma igammac isclose lcm le less less_equal
    logaddexp logaddexp2 logical_and logical_or logical_xor lt maximum minimum ne nextafter
    not_equal remainder xlogy
"""

SPECIAL_BINARY = """
    chebyshev_polynomial_t chebyshev_polynomial_u chebyshev_polynomial_v chebyshev_polynomial_w
    gammainc gammaincc hermite_polynomial_h hermite_polynomial_he laguerre_polynomial_l
    legendre_polynomial_p shifted_chebyshev_polynomial_t shifted_chebyshev_polynomial_u
    shifted_chebyshev_polynomial_v shifted_chebyshev_polynomial_w xlog1py xlogy zeta
"""

LINEAR_UNARY = """
    _conj _conj_physical _neg_view conj deg2rad neg negative rad2deg
"""

COPIES = """
    _lazy_clone alias alias_copy clone contiguous lift lift_fresh lift_fresh_copy positive
    resolve_conj resolve_neg _to_copy _cast_Double _cast_Float _cast_Half _cast_Int _cast_Long
    _cast_Byte _cast_Char _cast_Short chalf pin_memory _to_cpu
"""
"""Ops that give their operand as it is, in other memory or another dtype at most."""

BACKWARD = """
    gelu_backward sigmoid_backward silu_backward tanh_backward threshold_backward logit_backward
    hardsigmoid_backward hardswish_backward hardtanh_backward leaky_relu_backward elu_backward
    mish_backward softplus_backward softshrink_backward
    hardshrink_backward log_sigmoid_backward
"""


def _ops(names: str, prefix: str = "") -> list[OpOverloadPacket]:
    """The named ops that this torch has."""
    return [getattr(aten, prefix + n) for n in names.split() if hasattr(aten, prefix + n)]


rule(*_ops(NONLINEAR_UNARY), *_ops(NONLINEAR_BINARY), spec=broadcast)
rule(*_ops(KEEPS_RESULT), *_ops("exp2 expm1 ndtri", "special_"), spec=broadcast, keeps="result")
rule(*_ops(STEPS), aten.special_round, spec=broadcast, keeps="")
rule(aten.sigmoid, aten.special_expit, spec=broadcast, keeps="result", kind=OpKind.GATE)
rule(aten.hardsigmoid, spec=broadcast, kind=OpKind.GATE)
rule(aten.frexp, spec=broadcast, keeps="result.1")
rule(*_ops(SPECIAL_UNARY, "special_"), *_ops(SPECIAL_BINARY, "special_"), spec=broadcast)
rule(*_ops("erfcx i0e i1 i1e log_ndtr", "special_"), spec=broadcast, keeps="self result")
rule(aten.pow.Tensor_Scalar, aten.float_power.Tensor_Scalar, spec=broadcast)
rule(
    aten.pow.Scalar, aten.pow.Tensor_Tensor, aten.float_power.Scalar,
    aten.float_power.Tensor_Tensor, spec=broadcast, keeps="self exponent result",
)  # fmt: skip
rule(aten.sgn, aten.copysign, spec=broadcast, keeps="self result")
rule(aten.hypot, spec=broadcast, keeps="self other result")
rule(aten.polar, spec=broadcast, keeps="result")
rule(aten.floor_divide, aten.heaviside, spec=broadcast, keeps="")
rule(aten.max.other, aten.min.other, spec=broadcast)
rule(*_ops(LINEAR_UNARY), spec=broadcast, linear=["self", "a"], moves=False)
rule(
    aten.conj_physical, spec=broadcast, linear=["self"],
    view=lambda call: not tensor_of(call.operands[0]).is_complex(),
)  # fmt: skip
rule(*_ops(COPIES), spec=broadcast, linear=["self", "a"], moves=True)
rule(*_ops(BACKWARD), spec=broadcast, linear=["grad_output"])
rule(
    aten.native_dropout_backward,
    spec=broadcast, linear=["grad_output"], keeps="grad_output mask",
)  # fmt: skip


def _cast(call: Call) -> str:
    """The dtype may come from another tensor: it is split alike where its shape allows it."""
    mine = call.shape("self")
    names = tensor(names_of(len(mine)))
    others = [
        names if shape == mine else tensor(f"t{i}!" for i in range(len(shape)))
        for shape in call.shapes[1:]
    ]
    return signature([names, *others], [names])


def _returns_operand(call: Call) -> bool:
    """Whether a cast has nothing to do."""
    before, after = tensor_of(call.operands[0]), call.results[0]
    same = before.dtype == after.dtype and before.stride() == after.stride()
    return same and not call.flag("copy")


rule(
    aten.to, aten.type_as,
    spec=_cast, linear=["self"], view=_returns_operand, moves=True, keeps="",
)  # fmt: skip
rule(aten.detach, aten.detach_copy, spec=broadcast, linear=["self"], detached=True, moves=True)

rule(aten.add, aten.sub, aten.subtract, aten.rsub, spec=broadcast, linear=["self other"])
rule(aten.mul, aten.multiply, spec=broadcast, linear=["self", "other"])
rule(aten.ldexp, spec=broadcast, linear=["self"], keeps="other result")


def _quotient(call: Call) -> list[str]:
    """Division is linear in the numerator unless it rounds."""
    return [] if call.get("rounding_mode") else ["self"]


rule(aten.div, aten.divide, aten.true_divide, spec=broadcast, linear=_quotient)
rule(aten.where, spec=broadcast, linear=["self other"])
rule(aten.masked_fill, spec=broadcast, linear=["self value"])
rule(aten.lerp, spec=broadcast, linear=["self end"])
rule(aten.addcmul, spec=broadcast, linear=["self tensor1", "self tensor2"])
rule(aten.addcdiv, spec=broadcast, linear=["self tensor1"])
rule(aten.complex, spec=broadcast, linear=["real imag"], keeps="real imag")
rule(aten.copy, spec=broadcast, linear=["src"])


def _per_channel(call: Call) -> str:
    """prelu: one slope for each channel, the second dim."""
    names = names_of(call.rank("self"))
    channel = names[1] if len(names) > 1 else "1"
    slope = [channel if size > 1 else "1" for size in call.shape("weight")]
    return signature([tensor(names), tensor(slope)], [tensor(names)])


rule(aten.prelu, spec=_per_channel)
rule(aten._prelu_kernel, spec=broadcast)


def _gated(call: Call) -> str:
    """glu: a dim that is two halves, one after the other, gives one half."""
    dim = call.dim()
    names = names_of(call.rank("self"))
    halves = [*names]
    halves[dim] = f"[{names[dim]}={call.out[dim]}|{names[dim]}]"
    return signature([tensor(halves)], [tensor(names)])


rule(aten.glu, spec=_gated)


def _members(call: Call) -> str:
    """isin, bucketize: every element looked up in a table that stays whole."""
    operands = [
        tensor(aligned(shape, call.out))
        if slot.name in ("elements", "self", "element")
        else tensor(f"t{i}!" for i in range(len(shape)))
        for slot, shape in zip(call.slots, call.shapes, strict=True)
    ]
    return signature(operands, [tensor(names_of(len(call.out)))])


rule(aten.isin, aten.bucketize, spec=_members, detached=True)
