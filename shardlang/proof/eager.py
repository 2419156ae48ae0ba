"""The untouched model, run eagerly at its own dtype, against the reference."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import networkx as nx
import torch
from torch import Tensor, fx

from shardlang.capture import Captured, CaptureError, ModelSource, run_graph
from shardlang.capture.deferred import TRACED, build_apart, fill
from shardlang.capture.errors import first_line, model_line
from shardlang.capture.held import at
from shardlang.capture.nest import tensors
from shardlang.ir.leaf import LeafKind, ResultKind
from shardlang.ir.printed_type import dtype_name
from shardlang.ir.values import values
from shardlang.proof.conditioning import Conditioning, Rounding, spacing
from shardlang.proof.differences import Eager, Explained
from shardlang.proof.distance import counts, gap, is_finite, norm, norm_gap, size
from shardlang.proof.reference import Reference, Setting
from shardlang.rules.registry import is_random

COARSEST = 0.2
"""The tolerance of the coarsest dtypes, and the largest difference that rounding may explain."""


@dataclass(frozen=True, slots=True)
class Made:
    """What one run gives: results by name, and gradients by parameter."""

    results: Mapping[str, Tensor]
    gradients: Mapping[str, Tensor | None]


def compare_eager(source: ModelSource, reference: Reference) -> Eager:
    """Outputs, changed buffers and gradients of the model itself, with the tolerance of its dtypes.

    A model with random ops, which draws other numbers in float64, is compared with its traced graph
    at its own dtype instead, and so are gradients that rounding carries far from float64. Outputs
    that are far from it must be so for rounding (`Conditioning`), and agree with that graph.

    Raises:
        CaptureError: the model fails on real tensors, though its trace, which knows shapes alone,
            does not.
    """
    mine = run_model(source, reference.setting, reference.cotangents)
    scales = _Scales(reference)
    found = scales.compared(mine, reference.results, reference.gradients)
    random = any(map(is_random, reference.captured.graph.nodes))
    if not random and found.ok:
        return found
    twin = _traced(reference)
    own = scales.compared(mine, twin.results, twin.gradients)
    found = own if random else replace(found, gradients=own.gradients)
    if not found.ok:
        _explain(found, own, scales, mine)
    return found


class _Scales:
    """How differences from a reference are measured, and how large they may be."""

    def __init__(self, reference: Reference) -> None:
        self.reference = reference
        graph = reference.captured.graph
        output = graph.output_node().args[0]
        assert isinstance(output, (tuple, list))
        names = [result.name for result in reference.captured.results]
        read = values(graph)
        self.eps = {
            name: max(map(spacing, {node, *nx.ancestors(read, node)}))
            for name, node in zip(names, output, strict=True)
            if isinstance(node, fx.Node)
        }
        roots = [self.eps[name] for name in reference.cotangents]
        self.gradient_eps = max(roots, default=0.0)
        largest = max(map(norm, reference.gradients.values()), default=0.0)
        self.rounding = math.sqrt(self.gradient_eps) * largest

    def compared(
        self,
        mine: Made,
        results: Mapping[str, Tensor],
        gradients: Mapping[str, Tensor | None],
    ) -> Eager:
        """All differences, against results and gradients that are right."""
        outputs = {
            name: self.result_gap(name, mine.results[name], want)
            for name, want in results.items()
            if counts(mine.results[name])
        }
        found = {
            name: self.gradient_gap(name, mine.gradients.get(name), want)
            for name, want in gradients.items()
        }
        return Eager(
            outputs,
            found if self.reference.gradients else None,
            tolerance(self.gradient_eps),
            {name: tolerance(eps) for name, eps in self.eps.items()},
        )

    def result_gap(self, _: str, mine: Tensor, want: Tensor) -> float:
        """max|a-b| / max|b|; what is too large for the model's dtype is infinite on both sides."""
        return gap(mine, want.to(mine.dtype)) / (size(want) or 1.0)

    def gradient_gap(self, _: str, mine: Tensor | None, want: Tensor | None) -> float:
        """|a-b| / |b| in the Euclidean norm; one below rounding counts as that large."""
        if mine is None or want is None:
            return norm(mine if want is None else want) / (self.rounding or 1.0)
        return norm_gap(mine, want.to(mine.dtype)) / (max(norm(want), self.rounding) or 1.0)


def tolerance(eps: float) -> float:
    """How far results may lie from float64, where the coarsest numbers have this spacing."""
    return min(2e4 * eps, COARSEST)


def _explain(found: Eager, own: Eager, scales: _Scales, mine: Made) -> None:
    """Put into a comparison which of its differences are not fault of tracing."""
    reference = scales.reference
    how = scales.result_gap, scales.gradient_gap
    measured = Conditioning(reference, Rounding.own(reference), how, COARSEST)
    sound = {name for name, error in own.outputs.items()
             if error <= own.tolerances.get(name, own.tolerance)}  # fmt: skip
    for name, error, backward in list(found.excess()):
        if not backward and name in sound and not is_finite(mine.results[name]):
            found.explained.append(Explained(name, False, error, 0.0, 0.0, "overflow"))
            continue
        why = measured.explain(name, error, backward=backward)
        if why is not None and why.kind == "lost" and not backward and name in sound:
            why = replace(why, kind="ill-conditioned")
        if why is not None:
            found.explained.append(why)
        if why is not None and why.kind == "zero":
            errors = found.gradients if backward else found.outputs
            assert errors is not None
            errors[name] = why.beside_terms


def _traced(reference: Reference) -> Made:
    """The traced graph, run at the model's own dtype."""
    captured = reference.captured
    leaves = _own_values(captured, reference.values)
    torch.manual_seed(reference.seed)
    with torch.set_grad_enabled(bool(reference.cotangents)):
        made = run_graph(captured, leaves)
    results = {
        result.name: value
        for result, value in zip(captured.results, made, strict=True)
        if isinstance(value, Tensor)
    }
    _backward(results, reference.cotangents)
    return Made(results, {name: leaves[name].grad for name in reference.gradients})


def _own_values(captured: Captured, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The proof's values at the model's own dtypes, trainable ones as autograd leaves."""
    return {
        leaf.name: values[leaf.name].to(leaf.dtype, copy=True).requires_grad_(leaf.trainable)
        for leaf in captured.leaves
    }


def run_model(
    source: ModelSource, setting: Setting, cotangents: Mapping[str, Tensor] | None = None
) -> Made:
    """The model itself on a proof's values, at its own dtypes: results and gradients.

    Raises:
        CaptureError: SH0355, it fails.
    """
    captured, seeds = setting.captured, cotangents or {}
    model = build_apart(source.build, TRACED, source.deferred.module)
    held = _load(model, captured, setting.values)
    inputs = {
        leaf.name: setting.values[leaf.name].to(leaf.dtype, copy=True)
        for leaf in captured.leaves
        if leaf.kind is LeafKind.INPUT
    }
    buffers = dict(model.named_buffers(remove_duplicate=False))
    before = {name: buffer.clone() for name, buffer in buffers.items()}
    torch.manual_seed(setting.seed)
    results = _run(model, source, inputs, captured, seeds)
    buffers = dict(model.named_buffers(remove_duplicate=False))
    results |= {r.name: buffers[r.name] for r in captured.results if r.kind is ResultKind.MUTATION}
    _refuse_unseen(captured, before, buffers)
    return Made(results, {name: held[name].grad for name in setting.trainable})


def _refuse_unseen(
    captured: Captured, before: Mapping[str, Tensor], after: Mapping[str, Tensor]
) -> None:
    """Raise SH0357 for a buffer that the model changes, and its trace does not."""
    written = {result.name for result in captured.results if result.kind is ResultKind.MUTATION}
    for leaf in captured.leaves:
        if leaf.kind is not LeafKind.BUFFER or leaf.name in written or leaf.name not in before:
            continue
        old, new = before[leaf.name], after[leaf.name]
        if not torch.allclose(new, old, rtol=0, atol=0, equal_nan=True):
            raise CaptureError(
                "SH0357",
                f"the forward changes the buffer `{leaf.name}` where tracing does not see it",
                help=f"write it in `forward` itself, with `self.{leaf.name}.copy_(value)`",
            )


def _remedy(source: ModelSource) -> str:
    """What helps a model that fails on real tensors, and not while it is traced."""
    help = (
        "tracing checks shapes alone; declare inputs that the model itself accepts, their"
        " dtypes included, or give the model file a `batches(seed)` that yields such"
    )
    if source.compute is None:
        return help
    return (
        f"{help}; under `compute = {dtype_name(source.compute)}` parameters and inputs are cast and"
        " buffers are not: where an op does not take both, cast them in the model"
    )


def _run(
    model: torch.nn.Module,
    source: ModelSource,
    inputs: dict[str, Tensor],
    captured: Captured,
    cotangents: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    """The outputs of the model by name, with gradients left in its parameters."""
    names = [result.name for result in captured.results if result.kind is ResultKind.OUTPUT]
    try:
        with torch.set_grad_enabled(bool(cotangents)):
            made = [value for _, value in tensors(source.call(model, inputs))]
        outputs = dict(zip(names, made, strict=True))
        _backward(outputs, cotangents)
    except Exception as error:
        raise CaptureError(
            "SH0355",
            f"the model fails on real tensors: {type(error).__name__}: {first_line(error)}",
            help=_remedy(source),
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
            if leaf.kind in (LeafKind.PARAM, LeafKind.BUFFER) and leaf.name in held:
                fill(held[leaf.name], values[leaf.name])
        for name, path in captured.held.items():
            fill(at(model, path), values[name])
    return held
