"""What the schema of an op, or the signature of a function in its place, says of its arguments."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import TypeAlias

from torch.fx.node import Target

from shardlang.ir.compat import OpOverload

Operator: TypeAlias = Callable[..., object]
"""An aten op, or a function that stands in a graph like one."""


@functools.lru_cache(maxsize=4096)
def argument_names(target: Operator) -> tuple[str, ...]:
    """Names of an op's arguments, in order."""
    if isinstance(target, OpOverload):
        return tuple(argument.name for argument in target._schema.arguments)
    return tuple(_signature(target).parameters)


def keyword_only(target: Operator) -> set[str]:
    """Names of an op's keyword-only arguments."""
    if isinstance(target, OpOverload):
        return {a.name for a in target._schema.arguments if a.kwarg_only}
    kinds = _signature(target).parameters.values()
    return {p.name for p in kinds if p.kind is inspect.Parameter.KEYWORD_ONLY}


def defaults(target: Operator) -> dict[str, object]:
    """Default values of an op's arguments."""
    return dict(_defaults(target))


@functools.lru_cache(maxsize=4096)
def _defaults(target: Operator) -> Mapping[str, object]:
    if isinstance(target, OpOverload):
        return {a.name: a.default_value for a in target._schema.arguments if a.has_default_value()}
    parameters = _signature(target).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}


def _signature(target: Operator) -> inspect.Signature:
    try:
        return inspect.signature(target)
    except (TypeError, ValueError):
        return inspect.Signature()


def tensor_arguments(target: Operator) -> list[str]:
    """Names of an op's tensor and optional-tensor arguments."""
    if isinstance(target, OpOverload):
        return [a.name for a in target._schema.arguments if "Tensor" in str(a.type)]
    notes = getattr(target, "__annotations__", {})
    return [name for name, note in notes.items() if "Tensor" in str(note) and name != "return"]


def full_name(target: Operator) -> str:
    """`aten.linear.default` for an op, `lookup` for the function of that name."""
    return str(target) if isinstance(target, OpOverload) else short_name(target)


def read_aliases(target: Operator) -> set[str]:
    """Names of the arguments in whose memory the results of an op lie, unless it writes there."""
    if not isinstance(target, OpOverload):
        return set()
    arguments = target._schema.arguments
    return {a.name for a in arguments if a.alias_info is not None and not a.alias_info.is_write}


def writes(op: OpOverload) -> bool:
    """Whether an op writes to one of its arguments."""
    marked = (a.alias_info for a in op._schema.arguments)
    return any(info is not None and info.is_write for info in marked)


def gives_tensors(op: OpOverload) -> bool:
    """Whether some result of an op is a tensor."""
    return any("Tensor" in str(result.type) for result in op._schema.returns)


def short_name(target: Target) -> str:
    """`linear` for `aten.linear.default`, `lookup` for the function of that name."""
    if isinstance(target, OpOverload):
        return target._opname
    return target if isinstance(target, str) else getattr(target, "__name__", str(target))
