"""The table of op rules: which op has which rule, and how rules are declared.

rule(aten.linear, "b... i, o i, +o? -> b... o", linear=["input bias", "weight bias"])
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypedDict, Unpack

import torch
from torch import fx
from torch.fx.node import Target

from shardlang.ir.collective import ReduceOp
from shardlang.ir.compat import OpOverload, OpOverloadPacket, overload_names
from shardlang.ir.node import info
from shardlang.ir.traits import OpKind, Traits
from shardlang.rules.call import Call
from shardlang.rules.indexed import Indexed
from shardlang.rules.op_rule import Linear, Localize, LocalizeFast, Lower, OpRule, Spec
from shardlang.rules.schema import Operator, gives_tensors, short_name, writes


class Options(TypedDict, total=False):
    """The fields of an `OpRule` beside its notation."""

    linear: Linear
    localize: Localize | None
    always: bool
    fast: LocalizeFast | None
    fast_spec: Spec | None
    lower: Lower | None
    others: Callable[[Call], Sequence[str]] | None
    reduce: ReduceOp
    passes: bool
    random: bool | Callable[[Call], bool]
    detached: bool
    name: str
    kind: OpKind
    view: bool | Callable[[Call], bool] | None
    moves: bool | None
    keeps: str | Callable[[Call], str] | None
    indexes: Callable[[Call], Iterable[Indexed]] | None
    flops: Sequence[str] | Callable[[Call], Sequence[str]] | None
    picks: str


RULES: dict[Operator, OpRule] = {}
"""Op overload, or local function, to its rule."""


def overloads(op: Operator) -> list[Operator]:
    """All overloads of a packet that work on tensors out of place; an overload alone."""
    return [*_functional(op)] if isinstance(op, OpOverloadPacket) else [op]


def _functional(packet: OpOverloadPacket) -> list[OpOverload]:
    found = [getattr(packet, name) for name in overload_names(packet)]
    return [op for op in found if not writes(op) and gives_tensors(op)]


def traits_of(node: fx.Node) -> Traits:
    """What is known of a node's op: of the rule that the node is bound to, else of the table's."""
    sharding = info(node).sharding
    if sharding is not None:
        return sharding.rule.traits
    declared = find(node.target) if node.op == "call_function" else None
    return declared.traits(Call(node)) if declared is not None else Traits(short_name(node.target))


def is_random(node: fx.Node) -> bool:
    """Whether a node draws random numbers."""
    declared = find(node.target) if node.op == "call_function" else None
    return declared is not None and declared.draws(Call(node))


def in_torch(*names: str) -> list[OpOverload]:
    """The named aten ops that this torch has: all overloads of `op`, or `op.overload` alone."""
    found: list[OpOverload] = []
    for name in names:
        packet, _, overload = name.partition(".")
        op = getattr(torch.ops.aten, packet, None)
        if op is not None and overload:
            found += [getattr(op, overload)] if hasattr(op, overload) else []
        elif op is not None:
            found += _functional(op)
    return found


def rule(*ops: Operator, spec: Spec, **options: Unpack[Options]) -> None:
    """Declare the rule of some ops (packets stand for all their functional overloads).

    Raises:
        ValueError: an op has a rule already.
    """
    declared = OpRule(spec, **options)
    for op in ops:
        for overload in overloads(op):
            if overload in RULES:
                raise ValueError(f"{overload} has a rule already")
            RULES[overload] = declared


LATE: dict[str, OpRule] = {}
"""Qualified name to the rule of an op that another package registers when it is imported."""


def late_rule(op: str, *, spec: Spec, **options: Unpack[Options]) -> None:
    """Declare the rule of an op, `package::op`, that need not be registered yet."""
    LATE[op] = OpRule(spec, **options)


def find(target: Target) -> OpRule | None:
    """The rule of an op, or None."""
    found = RULES.get(target) if callable(target) else None
    if found is None and isinstance(target, OpOverload):
        return LATE.get(target._schema.name)
    return found


def known(ops: Iterable[OpOverload]) -> list[OpOverload]:
    """Those of `ops` that have a rule."""
    return [op for op in ops if op in RULES]
