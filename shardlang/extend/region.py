"""A function as one op: traced as a single node, run on each device on its own parts."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from shardlang.ir.arguments import Args, Kwargs, tensors_in
from shardlang.ir.compat import CustomOpDef, storage_key, tree_leaves, tree_map_only


class RuleError(ValueError):
    """A rule that cannot be declared, or an op that has none."""


def region_of(function: Callable[..., object]) -> CustomOpDef:
    """A function as one op with the gradient of its own operators.

    Raises:
        RuleError: its arguments are not annotated, or have types that no op takes.
    """
    try:
        schema = torch.library.infer_schema(function, mutates_args=())
    except (ValueError, TypeError) as fault:
        reason = first_line(fault).removeprefix("infer_schema(func): ").split(" Got ")[0]
        raise RuleError(f"`{function.__name__}` cannot be made an op: {reason}") from None
    words = f"{function.__module__}_{function.__qualname__}"
    name = f"shardlang_local::{re.sub(r'[^A-Za-z0-9_]', '_', words)}"
    region = _REGIONS.get((name, schema))
    if region is None:
        region = _REGIONS[name, schema] = _Region(function)
        region.op = torch.library.custom_op(name, region.run, mutates_args=(), schema=schema)
        region.op.register_fake(region.run)
        region.op.register_autograd(region.backward, setup_context=_keep)
    region.function = function
    assert region.op is not None
    return region.op


def first_line(fault: Exception) -> str:
    """What an error says first."""
    return (str(fault).splitlines() or [type(fault).__name__])[0].rstrip(".")


def _unaliased(value: object, arguments: tuple[Args, Kwargs]) -> object:
    """Results with memory of their own, as an op must have them."""
    taken = {storage_key(x) for x in tensors_in(arguments)}

    def own(x: Tensor) -> Tensor:
        if storage_key(x) in taken:
            x = x.clone()
        taken.add(storage_key(x))
        return x

    made: object = tree_map_only(Tensor, own, value)
    return made


class _Kept(Protocol):
    """What autograd keeps of a call: where its tensors stand, and what stands elsewhere."""

    places: list[int]
    plain: list[object]
    saved_tensors: tuple[Tensor, ...]

    def save_for_backward(self, *values: object) -> None: ...


def _keep(ctx: _Kept, inputs: Args, output: object) -> None:
    """Keep a region's arguments for its gradient."""
    ctx.places = [i for i, value in enumerate(inputs) if isinstance(value, Tensor)]
    ctx.plain = [None if i in ctx.places else value for i, value in enumerate(inputs)]
    ctx.save_for_backward(*(inputs[i] for i in ctx.places))


@dataclass(slots=True)
class _Region:
    """A function as an op; when its file is executed anew, the new function takes its place."""

    function: Callable[..., object]
    op: CustomOpDef | None = None

    def run(self, *args: object, **kwargs: object) -> object:
        """Call the function."""
        return _unaliased(self.function(*args, **kwargs), (args, kwargs))

    def backward(self, ctx: _Kept, *grads: object) -> tuple[Tensor | None, ...]:
        """The gradients of all arguments: the function once more, with autograd."""
        arguments = list(ctx.plain)
        leaves: list[Tensor] = []
        for place, saved in zip(ctx.places, ctx.saved_tensors, strict=True):
            leaves.append(saved.detach().requires_grad_(_has_gradient(saved)))
            arguments[place] = leaves[-1]
        with torch.enable_grad():
            results = tensors_in(self.function(*arguments))
        pairs = [
            (result, grad)
            for result, grad in zip(results, tree_leaves(grads), strict=True)
            if result.requires_grad and grad is not None
        ]
        wanted = [leaf for leaf in leaves if leaf.requires_grad]
        found = iter(_grad(pairs, wanted))
        made: list[Tensor | None] = [None] * len(arguments)
        for place, leaf in zip(ctx.places, leaves, strict=True):
            made[place] = next(found) if leaf.requires_grad else None
        return tuple(made)


_REGIONS: dict[tuple[str, str], _Region] = {}
"""The regions by name and schema."""


def _grad(pairs: list[tuple[Tensor, Tensor]], wanted: list[Tensor]) -> Sequence[Tensor | None]:
    if not pairs or not wanted:
        return [None] * len(wanted)
    roots, seeds = zip(*pairs, strict=True)
    return torch.autograd.grad(roots, wanted, seeds, allow_unused=True)


def _has_gradient(x: Tensor) -> bool:
    return x.is_floating_point() or x.is_complex()
