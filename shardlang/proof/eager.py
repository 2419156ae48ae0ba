"""The untouched model, run eagerly at its own dtype, against the float64 reference."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from shardlang.capture import Captured, CaptureError, ModelSource
from shardlang.capture.errors import first_line, model_line
from shardlang.capture.nest import tensors


def compare_eager(
    captured: Captured,
    source: ModelSource,
    values: Mapping[str, Tensor],
    reference: Mapping[str, Tensor],
    seed: int,
) -> tuple[float | None, float]:
    """The largest relative difference of any output, and the tolerance for the model's dtype.

    None where the model is random: at another dtype it draws other numbers.

    Raises:
        CaptureError: the model fails on real tensors, though its trace, which knows shapes alone,
            does not.
    """
    if any(node.meta.get("draws") for node in captured.graph.nodes) or _is_random(captured):
        return None, 0.0
    model = source.build()
    _load(model, captured, values)
    inputs = {
        leaf.name: values[leaf.name].to(leaf.dtype)
        for leaf in captured.leaves
        if leaf.kind == "input"
    }
    torch.manual_seed(seed)
    result = _outputs(model, source, inputs)
    names = [r.name for r in captured.results if r.kind == "output"]
    worst = 0.0
    for name, mine in zip(names, result.values(), strict=True):
        want = reference[name].detach()
        if mine.is_floating_point():
            scale = float(want.abs().max()) or 1.0 if want.numel() else 1.0
            gap = (mine.double() - want).nan_to_num(0.0, 0.0, 0.0)
            worst = max(worst, float(gap.abs().max()) / scale if want.numel() else 0.0)
    dtypes = [leaf.dtype for leaf in captured.leaves if leaf.dtype.is_floating_point]
    coarsest = max((torch.finfo(dtype).eps for dtype in dtypes), default=0.0)
    return worst, 2e4 * coarsest if coarsest < 1e-3 else 0.2


def _outputs(
    model: torch.nn.Module, source: ModelSource, inputs: dict[str, Tensor]
) -> dict[str, Tensor]:
    try:
        with torch.no_grad():
            return dict(tensors(source.call(model, inputs)))
    except Exception as error:
        raise CaptureError(
            "SH0355",
            f"the model fails on real tensors: {type(error).__name__}: {first_line(error)}",
            help="tracing checks shapes alone; declare inputs that the model itself accepts, their"
            " dtypes included",
            source=model_line(error),
        ) from error


def _is_random(captured: Captured) -> bool:
    from shardlang.rules.registry import find

    return any(
        (declared := find(node.target)) is not None and declared.random
        for node in captured.graph.nodes
        if node.op == "call_function"
    )


def _load(model: torch.nn.Module, captured: Captured, values: Mapping[str, Tensor]) -> None:
    """Copy the proof's values into a real model."""
    held: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
    held.update(model.named_buffers(remove_duplicate=False))
    with torch.no_grad():
        for leaf in captured.leaves:
            if leaf.kind in ("param", "buffer") and leaf.name in held:
                held[leaf.name].copy_(values[leaf.name])
