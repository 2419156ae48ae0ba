"""Arguments and calls of a step as Python: what depends on the device is a call with a text."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import fx

from shardlang.ir.collective import Collective, ReduceOp
from shardlang.ir.compat import OpOverload
from shardlang.ir.device_values import (
    ByPart,
    Combined,
    ListByPart,
    LocalIndices,
    LocalShard,
    LocalSize,
    LocalStart,
    PartNumber,
)
from shardlang.ir.experts.route import Route
from shardlang.ir.graph import op_name
from shardlang.ir.mesh import Axis, joined, product
from shardlang.ir.spelling import route_text
from shardlang.ir.step import Operand

Named = Callable[[fx.Node], str]
"""The variable of a node."""


def text_of(value: object, named: Named) -> str:
    """An argument as Python: `[size("7@dp"), 5]`."""
    if isinstance(value, fx.Node):
        return named(value)
    if isinstance(value, list):
        return f"[{', '.join(text_of(item, named) for item in value)}]"
    if isinstance(value, tuple):
        inner = ", ".join(text_of(item, named) for item in value)
        return f"({inner},)" if len(value) == 1 else f"({inner})"
    if isinstance(value, dict):
        inner = ", ".join(f"{key!r}: {text_of(item, named)}" for key, item in value.items())
        return f"{{{inner}}}"
    return _leaf(value)


def _leaf(value: object) -> str:
    """An argument that is no container."""
    if isinstance(value, OpOverload):
        return f"{value.namespace}.{value._opname}.{value._overloadname}"
    if isinstance(value, float):
        return repr(value) if abs(value) < float("inf") else f'float("{value}")'
    if isinstance(value, Operand):
        return f"operand({value.index})"
    if isinstance(value, torch.device):
        return f'torch.device("{value}")'
    if callable(value) and not isinstance(value, type):
        return getattr(value, "__name__", repr(value))
    return device_text(value) or repr(value)


def device_text(value: object) -> str:
    """What depends on the device, as a call with its printed form; empty for anything else."""
    if isinstance(value, Combined):
        parts = (device_text(part) or str(part) for part in value.parts)
        return f"({f' {value.sign} '.join(parts)})"
    if isinstance(value, (LocalSize, LocalStart, LocalIndices, LocalShard, Route)):
        text = route_text(value) if isinstance(value, Route) else repr(value)
        head, _, rest = text.partition("(")
        return f'{head}("{rest[:-1]}")'
    if isinstance(value, PartNumber):
        return f'part("{product(value.axes)}")'
    if isinstance(value, (ByPart, ListByPart)):
        each = value.numbers if isinstance(value, ByPart) else value.lists
        shown = [x if isinstance(x, int) else list(x) for x in each]
        return f'by_part("{product(value.axes)}", {shown})'
    return ""


def call_name(target: object) -> str:
    """`aten.linear`, `max_over`."""
    if isinstance(target, OpOverload):
        return f"{target.namespace}.{target._opname}"
    return op_name(target).partition(".")[0]


def collective_name(collective: Collective) -> str:
    """`all_gather`; what sends nothing is called after what it does: `first`."""
    return collective.kind.value


def collective_arguments(pairs: Sequence[Collective], several: bool) -> list[str]:
    """The axes, the dims that change, and how it is reduced, of one or `several` sent as one."""
    first = pairs[0]
    parts = [axes_text(first.axes)]
    dims = [one.dims for one in pairs]
    if several and any(pair != (None, None) for pair in dims):
        parts.append(f"dims={text_of([_dim(*pair) for pair in dims], str)}")
    elif not several:
        parts += _dims(*dims[0])
    if first.route is not None:
        parts.append(f'route="{route_text(first.route)}"')
    if first.reads is not None:
        parts.append(f'reads="{first.reads}"')
    if first.reduce is not ReduceOp.SUM:
        parts.append(f'op="{first.reduce}"')
    return parts


def axes_text(axes: tuple[Axis, ...]) -> str:
    """`"dp"`, or `("dp", "tp")`."""
    names = [f'"{axis.name}"' for axis in joined(axes)]
    return names[0] if len(names) == 1 else f"({', '.join(names)})"


def _dims(before: int | None, after: int | None) -> list[str]:
    if before is not None and after is not None and before != after:
        return [f"from_dim={before}", f"to_dim={after}"]
    found = _dim(before, after)
    return [f"dim={found}"] if found is not None else []


def _dim(before: int | None, after: int | None) -> int | None:
    return after if before is None else before
