"""Rules of the primitive ops that decompositions leave."""

from __future__ import annotations

import torch

from shardlang.rules.call import Call
from shardlang.rules.registry import rule
from shardlang.rules.shapes import broadcast
from shardlang.rules.writing import arrow, names

prims = torch.ops.prims

_POINTWISE = """
    abs bessel_i0e bessel_i1 bessel_i1e bessel_j0 bessel_j1 bitwise_not conj_physical digamma
    erfcx exp2 fmax fmin frexp gcd hypot igamma igammac log2 maximum minimum ndtri ne nextafter
    reciprocal rsqrt sign signbit spherical_bessel_j0 trunc zeta
    acos acosh asin asinh atan atan2 atanh bitwise_and bitwise_or bitwise_xor cbrt ceil cos cosh eq
    erf erf_inv erfc exp expm1 floor ge gt le lgamma log log10 log1p lt pow remainder round
    shift_left sin sinh sqrt tan tanh
"""

rule(*(getattr(prims, name) for name in _POINTWISE.split() if hasattr(prims, name)), spec=broadcast)
rule(prims.neg, prims.view_of, spec=broadcast, linear=["self", "a"])
rule(prims.convert_element_type, spec=broadcast, linear=["a"])
rule(prims.add, prims.sub, spec=broadcast, linear=["self other"])
rule(prims.mul, spec=broadcast, linear=["self", "other"])
rule(prims.div, spec=broadcast, linear=["self"])
rule(prims.where, spec=broadcast, linear=["a b"])


def _reduced(call: Call, mark: str) -> str:
    """Some dims reduced away; all where none are named."""
    dims = names(len(call.shapes[0]))
    gone = call.dims("dims") if call["dims"] is not None else tuple(range(len(dims)))
    operand = [f"{dim}{mark}" if i in gone else dim for i, dim in enumerate(dims)]
    return arrow([operand], [[dim for i, dim in enumerate(dims) if i not in gone]])


rule(prims.sum, spec=lambda call: _reduced(call, ""), linear=["inp"])
rule(
    prims.prod, prims.var, prims.amax, prims.amin, spec=lambda call: _reduced(call, "!"),
)  # fmt: skip
