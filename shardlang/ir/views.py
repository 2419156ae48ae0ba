"""Ops that give views."""

from __future__ import annotations

from shardlang.ir.compat import OpOverload


def gives_view(target: object) -> bool:
    """Whether what an op gives may be a view of its first operand."""
    if not isinstance(target, OpOverload):
        return False
    first = target._schema.returns[:1]
    return any(r.alias_info is not None and not r.alias_info.is_write for r in first)
