"""Running a model and its captured graph on the same values."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from shardlang.capture import (
    CallableSource,
    Captured,
    InputSpec,
    ModelSource,
    capture,
    load_plain,
    make_inputs,
    raise_to_float64,
    raised_dtype,
    run_graph,
)
from shardlang.capture.nest import tensors

SEED = 11


@dataclass(slots=True)
class Runs:
    """Results and gradients of the eager model and of the graph, in order."""

    eager: list[torch.Tensor]
    graph: list[torch.Tensor]
    eager_gradients: list[torch.Tensor | None]
    graph_gradients: list[torch.Tensor | None]

    def error(self) -> float:
        """The largest absolute difference of any result or gradient; inf where one is missing."""
        pairs = [
            *zip(self.eager, self.graph, strict=True),
            *zip(self.eager_gradients, self.graph_gradients, strict=True),
        ]
        return max(_difference(a, b) for a, b in pairs)


def _difference(a: torch.Tensor | None, b: torch.Tensor | None) -> float:
    if a is None or b is None:
        return 0.0 if a is b else float("inf")
    assert a.shape == b.shape and a.dtype == b.dtype
    return float((a.detach().double() - b.detach().double()).abs().max()) if a.numel() else 0.0


def run_both(
    source: ModelSource, captured: Captured, specs: Sequence[InputSpec], *, double: bool = False
) -> Runs:
    """Run eagerly and through the graph under one torch seed; the first result is the loss."""
    model = load_plain(source, seed=3)
    inputs = make_inputs(source, specs, seed=0)
    if double:
        model = model.double()
        inputs = {name: x.to(raised_dtype(x.dtype)) for name, x in inputs.items()}
    parameters = [p for p in model.parameters() if p.requires_grad]
    held = dict(model.named_parameters()) | {n: b.clone() for n, b in model.named_buffers()}
    values = {leaf.name: held[leaf.name] for leaf in captured.leaves if leaf.name in held} | inputs
    graph = raise_to_float64(captured.graph) if double else captured.graph
    with raised_casts() if double else contextlib.nullcontext():
        torch.manual_seed(SEED)
        eager = [x for _, x in tensors(source.call(model, clones(inputs)))]
    torch.manual_seed(SEED)
    results = run_graph(captured, values, graph)
    after = dict(model.named_buffers())
    eager += [after[r.name] for r in captured.results if r.kind == "mutation"]
    return Runs(eager, results, gradients(eager[0], parameters), gradients(results[0], parameters))


def clones(inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Inputs that a model may do with what it likes."""
    return {name: x.clone() for name, x in inputs.items()}


def gradients(loss: torch.Tensor, parameters: list[nn.Parameter]) -> list[torch.Tensor | None]:
    """Gradients of a sum of the loss, None for parameters that it does not use."""
    if not loss.requires_grad:
        return []
    return list(torch.autograd.grad(loss.sum(), parameters, allow_unused=True))


class _Raise(TorchFunctionMode):
    """Turns every request for a lower floating type into one for float64."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func in (torch.Tensor.float, torch.Tensor.half, torch.Tensor.bfloat16):
            func = torch.Tensor.double
        return func(*map(_raise, args), **{k: _raise(v) for k, v in (kwargs or {}).items()})


def _raise(value: Any) -> Any:
    return raised_dtype(value) if isinstance(value, torch.dtype) else value


@contextlib.contextmanager
def raised_casts() -> Iterator[None]:
    """Run eager code with its internal casts raised to float64."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with _Raise():
            yield
    finally:
        torch.set_default_dtype(default)


def module(forward: Callable[..., Any], **parts: Any) -> type[nn.Module]:
    """A module class with a linear layer `lin` of size 6 and parts built by the given functions.

    A part may be a module factory, or a tensor, which becomes a buffer.
    """

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lin = nn.Linear(6, 6)
            for name, part in parts.items():
                if isinstance(part, torch.Tensor):
                    self.register_buffer(name, part.clone())
                else:
                    setattr(self, name, part())

    Model.forward = forward  # type: ignore[method-assign]
    return Model


def capture_plain(
    forward: Callable[..., Any], mode: str = "train", **parts: Any
) -> tuple[CallableSource, Captured, tuple[InputSpec, ...]]:
    """Capture such a module on one float input `x` of shape 8 × 6."""
    source = CallableSource(module(forward, **parts), mode)
    specs = (InputSpec("x", torch.float32, (8, 6)),)
    return source, capture(source, specs), specs


def targets(captured: Captured) -> list[str]:
    """The operators of a graph, in order, without their namespace."""
    calls = [n for n in captured.graph.nodes if n.op == "call_function"]
    return [str(n.target).removeprefix("aten.") for n in calls]
