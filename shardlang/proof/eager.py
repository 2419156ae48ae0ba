"""The untouched model, run eagerly at its own dtype, against the reference."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from shardlang.capture import Captured, CaptureError, ModelSource, run_graph
from shardlang.capture.errors import first_line, model_line
from shardlang.capture.nest import tensors
from shardlang.proof.report import Eager
from shardlang.rules.registry import is_random


@dataclass(frozen=True, slots=True)
class Expected:
    """What a run should give: its results, and the gradients that its cotangents make.

    Cotangents and gradients are keyed by output and by parameter; both are empty in eval mode.
    """

    results: Mapping[str, Tensor]
    cotangents: Mapping[str, Tensor]
    gradients: Mapping[str, Tensor | None]


def compare_eager(
    captured: Captured,
    source: ModelSource,
    values: Mapping[str, Tensor],
    reference: Expected,
    seed: int,
) -> Eager:
    """Outputs, changed buffers and gradients of the model itself, with the tolerance of its dtype.

    A model with random ops, which draws other numbers in float64, is compared with its traced graph
    at its own dtype instead, and so are gradients that rounding carries far from float64.

    Raises:
        CaptureError: the model fails on real tensors, though its trace, which knows shapes alone,
            does not.
    """
    model = source.build()
    held = _load(model, captured, values)
    inputs = {
        leaf.name: values[leaf.name].to(leaf.dtype, copy=True)
        for leaf in captured.leaves
        if leaf.kind == "input"
    }
    torch.manual_seed(seed)
    mine = _run(model, source, inputs, captured, reference.cotangents)
    buffers = dict(model.named_buffers(remove_duplicate=False))
    mine |= {r.name: buffers[r.name] for r in captured.results if r.kind == "mutation"}
    found = _compared(captured, mine, held, reference)
    random = any(map(is_random, captured.graph.nodes))
    if not random and (found.ok or not found.outputs_ok):
        return found
    twin = _traced(captured, _own_values(captured, values), reference, seed)
    own = _compared(captured, mine, held, twin)
    return own if random else replace(found, gradients=own.gradients)


def _compared(
    captured: Captured,
    mine: Mapping[str, Tensor],
    held: Mapping[str, Tensor],
    reference: Expected,
) -> Eager:
    dtypes = [leaf.dtype for leaf in captured.leaves if leaf.dtype.is_floating_point]
    coarsest = max((torch.finfo(dtype).eps for dtype in dtypes), default=0.0)
    outputs = {
        name: _largest_gap(mine[name], want)
        for name, want in reference.results.items()
        if mine[name].is_floating_point() or mine[name].is_complex()
    }
    largest = max((_norm(g) for g in reference.gradients.values() if g is not None), default=0.0)
    gradients = {
        name: _norm_gap(held[name].grad, want, math.sqrt(coarsest) * largest)
        for name, want in reference.gradients.items()
    }
    tolerance = 2e4 * coarsest if coarsest < 1e-3 else 0.2
    return Eager(outputs, gradients if reference.cotangents else None, tolerance)


def _largest_gap(mine: Tensor, want: Tensor) -> float:
    """max|a-b| / max|b|, where both are finite."""
    if not want.numel():
        return 0.0
    gap = (_wide(mine) - _wide(want)).abs().nan_to_num(0.0, 0.0, 0.0)
    return float(gap.max()) / (float(_wide(want).abs().max()) or 1.0)


def _norm_gap(mine: Tensor | None, want: Tensor | None, rounding: float) -> float:
    """|a-b| / |b| in the Euclidean norm; a gradient below `rounding` counts as that large."""
    if mine is None or want is None:
        return _norm(mine if want is None else want) / (rounding or 1.0)
    scale = max(_norm(want), rounding) or 1.0
    return _norm(_wide(mine) - _wide(want)) / scale


def _norm(value: Tensor | None) -> float:
    return 0.0 if value is None else float(_wide(value).norm())


def _wide(value: Tensor) -> Tensor:
    return value.detach().to(torch.complex128 if value.is_complex() else torch.float64)


def _traced(
    captured: Captured, leaves: Mapping[str, Tensor], reference: Expected, seed: int
) -> Expected:
    """The traced graph, run at the model's own dtype."""
    torch.manual_seed(seed)
    with torch.set_grad_enabled(bool(reference.cotangents)):
        made = run_graph(captured, leaves)
    results = {
        result.name: value
        for result, value in zip(captured.results, made, strict=True)
        if isinstance(value, Tensor)
    }
    _backward(results, reference.cotangents)
    gradients = {name: leaves[name].grad for name in reference.gradients}
    return Expected(results, reference.cotangents, gradients)


def _own_values(captured: Captured, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The proof's values at the model's own dtypes, trainable ones as autograd leaves."""
    return {
        leaf.name: values[leaf.name].to(leaf.dtype, copy=True).requires_grad_(leaf.trainable)
        for leaf in captured.leaves
    }


def _run(
    model: torch.nn.Module,
    source: ModelSource,
    inputs: dict[str, Tensor],
    captured: Captured,
    cotangents: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    """The outputs of the model by name, with gradients left in its parameters."""
    names = [result.name for result in captured.results if result.kind == "output"]
    try:
        with torch.set_grad_enabled(bool(cotangents)):
            made = [value for _, value in tensors(source.call(model, inputs))]
        outputs = dict(zip(names, made, strict=True))
        _backward(outputs, cotangents)
    except Exception as error:
        raise CaptureError(
            "SH0355",
            f"the model fails on real tensors: {type(error).__name__}: {first_line(error)}",
            help="tracing checks shapes alone; declare inputs that the model itself accepts, their"
            " dtypes included",
            source=model_line(error),
        ) from error
    return outputs


def _backward(results: Mapping[str, Tensor], cotangents: Mapping[str, Tensor]) -> None:
    roots = [results[name] for name in cotangents]
    seeds = [c.to(root.dtype) for c, root in zip(cotangents.values(), roots, strict=True)]
    if roots:
        torch.autograd.backward(roots, seeds)


def _load(
    model: torch.nn.Module, captured: Captured, values: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Copy the proof's values into a real model; its parameters and buffers by name."""
    held: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
    held.update(model.named_buffers(remove_duplicate=False))
    with torch.no_grad():
        for leaf in captured.leaves:
            if leaf.kind in ("param", "buffer") and leaf.name in held:
                held[leaf.name].copy_(values[leaf.name])
    return held
