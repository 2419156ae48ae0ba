"""Ops that give views, and ops that give memory of their own."""

from __future__ import annotations

from shardlang.ir.compat import OpOverload, is_composite


def gives_view(target: object) -> bool:
    """Whether what an op gives may be a view of its first operand."""
    if not isinstance(target, OpOverload):
        return False
    first = target._schema.returns[:1]
    return any(r.alias_info is not None and not r.alias_info.is_write for r in first)


def gives_own_memory(target: object) -> bool:
    """Whether an op gives one tensor that lies in none of its operands."""
    if not isinstance(target, OpOverload) or len(target._schema.returns) != 1:
        return False
    if is_composite(target):
        return False
    return target._schema.returns[0].alias_info is None
