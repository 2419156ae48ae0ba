"""A program's own ops: their sharding rules, functions as local regions, and the proof of both.

    import shardlang

    @shardlang.rule("m k, k n -> m n", linear=["x", "w"])
    @torch.library.custom_op("mine::product", mutates_args=())
    def product(x: Tensor, w: Tensor) -> Tensor: ...

    @shardlang.local("b s d, d -> b s d")
    def scaled(x: Tensor, scale: Tensor) -> Tensor: ...

    shardlang.prove(scaled, torch.randn(3, 5, 7), torch.randn(7))

Such declarations stand in the file of the model, which is executed before the model is traced.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias, overload

import torch
import torch.utils._pytree as pytree
from torch import Tensor

import shardlang.rules
from shardlang.extend.region import RuleError as RuleError
from shardlang.extend.region import first_line, region_of
from shardlang.ir.collective import ReduceOp
from shardlang.ir.compat import CustomOpDef, overload_names
from shardlang.ir.rule import Rule
from shardlang.rules.notation import NotationError, Template, parse
from shardlang.rules.registry import RULES, find, late_rule
from shardlang.rules.schema import tensor_arguments

assert shardlang.rules

Op: TypeAlias = "CustomOpDef | torch._ops.OpOverload | torch._ops.OpOverloadPacket"
"""A `torch.library.custom_op`, or an overload (or packet with one) under `torch.ops`."""

_Declared: TypeAlias = "Op | Callable[..., object]"
_OPS = (CustomOpDef, torch._ops.OpOverload, torch._ops.OpOverloadPacket)


class ProofError(AssertionError):
    """A rule that is wrong: the assignments under which the sharded op computes something else."""


@overload
def rule(
    op: str, /, *, linear: Sequence[str] = (), reduce: str = "sum"
) -> Callable[[_Declared], Op]: ...
@overload
def rule(op: _Declared, spec: str, /, *, linear: Sequence[str] = (), reduce: str = "sum") -> Op: ...
def rule(
    op: str | _Declared,
    spec: str | None = None,
    /,
    *,
    linear: Sequence[str] = (),
    reduce: str = "sum",
) -> Op | Callable[[_Declared], Op]:
    """Declare how an op may be split: `rule(op, "m k, k n -> m n")`, or `@rule("m k, k n -> m n")`.

    As a decorator it stands above `torch.library.custom_op`; above a plain function it makes a
    local region of it (see `local`).

    Args:
        linear: sets of arguments in which the op is jointly linear, such as `["x bias", "w bias"]`.
        reduce: how the parts of a factor combine that no result has: `sum`, `max` or `min`.

    Raises:
        RuleError: the notation is wrong, does not fit the op, or the op has a rule already.
    """
    if spec is None:
        if not isinstance(op, str):
            raise RuleError(f"`{op}` has no rule; state it: `shardlang.rule(op, 'm k -> m')`")
        return lambda made: _declared(made, op, linear, reduce)
    return _declared(op, spec, linear, reduce)


def local(
    spec: str, /, *, linear: Sequence[str] = (), reduce: str = "sum"
) -> Callable[[Callable[..., object]], Op]:
    """Make a function a local region: traced as one op, run on each device on its own parts.

    `spec` states how its operands and results lie: dims of one name are split together, and a dim
    marked `!` is whole on every device. Its gradient is that of its own operators. The function
    takes tensors and plain values, all annotated, and neither draws random numbers nor writes to
    its operands.

    Raises:
        RuleError: see `rule`; or the function's annotations are missing.
    """
    return lambda function: _declared(region_of(function), spec, linear, reduce)


def _declared(op: object, spec: str, linear: Sequence[str], reduce: str) -> Op:
    """Enter a rule in the table and return the op."""
    if not isinstance(op, _OPS):
        if not callable(op):
            raise RuleError(f"`{op}` is neither an op nor a function")
        op = region_of(op)
    target = overload_of(op)
    name = target._schema.name
    if target in RULES:
        raise RuleError(f"`{name}` has a rule already")
    template = _parsed(spec, name)
    _check_names(target, template, linear)
    late_rule(
        name,
        spec=spec,
        linear=tuple(linear),
        reduce=_reduce_op(reduce),
        passes=not _contracts(template),
    )
    return op


def _reduce_op(name: str) -> ReduceOp:
    try:
        return ReduceOp(name)
    except ValueError:
        raise RuleError(f"`reduce` is `sum`, `max` or `min`, not `{name}`") from None


def overload_of(op: object) -> torch._ops.OpOverload:
    """The one overload of an op.

    Raises:
        RuleError: it is not an op, or has several overloads.
    """
    if isinstance(op, CustomOpDef):
        return op._opoverload
    if isinstance(op, torch._ops.OpOverloadPacket):
        names = overload_names(op)
        if len(names) != 1:
            raise RuleError(f"`{op}` has the overloads {', '.join(names)}; name one of them")
        found: torch._ops.OpOverload = getattr(op, names[0])
        return found
    if not isinstance(op, torch._ops.OpOverload):
        raise RuleError(
            f"`{getattr(op, '__name__', op)}` is not an op; declare it with `shardlang.local`"
        )
    return op


def _parsed(spec: str, name: str) -> Template:
    try:
        return parse(spec)
    except NotationError as fault:
        raise RuleError(f"the rule of `{name}`: {fault}") from None


def _check_names(target: torch._ops.OpOverload, template: Template, linear: Sequence[str]) -> None:
    """Compare a rule with the op's schema."""
    names, name = tensor_arguments(target), target._schema.name
    lists = any("[]" in str(a.type) or "List" in str(a.type) for a in target._schema.arguments)
    if len(template.operands) != len(names) and not lists:
        raise RuleError(
            f"the rule of `{name}` has {len(template.operands)} operands, the op takes the tensors"
            f" {', '.join(names) or 'none'}"
        )
    unknown = [word for words in linear for word in words.split() if word not in names]
    if unknown and not lists:
        raise RuleError(f"`{name}` has no tensor `{unknown[0]}`; it takes {', '.join(names)}")


def _contracts(template: Template) -> bool:
    """Whether some factor stands in operands alone, and so is summed over."""
    before, after = (
        {part.name for t in side for dim in t.dims for block in dim.blocks for part in block}
        for side in (template.operands, template.results)
    )
    return bool(before - after - template.whole)


@dataclass(frozen=True, slots=True)
class Proof:
    """A rule that was proven on one call.

    Attributes:
        rule: the rule bound to the call's shapes.
        assignments: the splits that were tried, each equal to the op in results and gradients.
    """

    op: str
    rule: Rule
    assignments: int

    def __str__(self) -> str:
        return f"{self.op}: {self.assignments} assignments proven"


def prove(op: object, /, *inputs: object, **options: object) -> Proof:
    """Prove an op's rule by brute force, on example inputs.

    Every legal split over one axis (of 2 and of 3 devices) and over two axes runs in the simulator,
    and must give the op's results and gradients. Floats are raised to float64. Choose odd sizes of
    at least 7, so that shards are uneven.

    Args:
        inputs: the op's positional arguments; `options` are the named ones.

    Raises:
        ProofError: a split gives other numbers; the message says which, and how far off.
        RuleError: the op has no rule, the rule does not fit the inputs, or they are too small.
    """
    from shardlang.proof.rules.calls import AtenCall
    from shardlang.proof.rules.check import Case
    from shardlang.proof.rules.prove import Tally, prove_call

    target = overload_of(op)
    name = str(target._schema.name)
    if find(target) is None:
        raise RuleError(f"`{name}` has no rule; declare one with `shardlang.rule`")
    args, kwargs = pytree.tree_map_only(Tensor, _raised, (inputs, options))
    call = AtenCall(target, args, kwargs)
    try:
        target(*args, **kwargs)
    except Exception as fault:
        raise RuleError(f"`{name}` fails on the inputs: {first_line(fault)}") from fault
    try:
        bound = Case(call).rule()
    except ValueError as fault:
        raise RuleError(f"the rule of `{name}` does not fit the inputs: {fault}") from None
    _check_sizes(name, bound)
    tally = Tally()
    failures = list(prove_call(name, call, tally, random.Random(0)))
    if failures:
        lines = "\n".join(f"  {failure.assignment}: {failure.reason}" for failure in failures)
        raise ProofError(f"the rule of `{name}` is wrong:\n{lines}")
    return Proof(name, bound, tally.assignments)


def _raised(x: Tensor) -> Tensor:
    """A tensor in double precision, with no history."""
    x = x.detach()
    if x.is_complex():
        return x.to(torch.complex128)
    return x.to(torch.float64) if x.is_floating_point() else x


def _check_sizes(name: str, bound: Rule) -> None:
    """Refuse inputs on which a factor cannot be split over 2 and over 3 devices."""
    small = [f"`{factor}` is {size}" for factor, size in _splittable(bound) if size < 3]
    if small:
        raise RuleError(
            f"the inputs are too small to prove `{name}`: {', '.join(small)}; give at least 3"
        )


def _splittable(bound: Rule) -> Iterator[tuple[str, int]]:
    return ((factor, size) for factor, size in bound.sizes if factor not in bound.whole)
