"""The unmodified model, run eagerly on one device in float64, casts inside it included."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from shardlang.capture import raise_to_float64, raised_dtype, run_graph
from shardlang.capture.deferred import build_real
from shardlang.capture.nest import tensors
from shardlang.ir.program import LocalProgram
from shardlang.proof.draws import with_program_draws
from shardlang.proof.values import cotangents
from tests.real.subjects import Batch, Subject

RATE = 0.05
"""The learning rate of the plain SGD between two steps."""


@dataclass(frozen=True, slots=True)
class Step:
    """What one step gives, whole: results, gradients, and the state after the update."""

    outputs: Mapping[str, Tensor]
    cotangents: Mapping[str, Tensor]
    gradients: Mapping[str, Tensor | None]
    state: Mapping[str, Tensor]


class Raising(TorchDispatchMode):
    """Every floating value is float64, whatever dtype the model's code names."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        args, kwargs = tree_map(_raise, (args, dict(kwargs or {})))
        if _chooses_dtype(func, args, kwargs):
            kwargs["dtype"] = raised_dtype(_without_draws(func, args, kwargs).dtype)
        return IN_FLOAT64.get(func, func)(*args, **kwargs)


def _grouped_mm(a: Tensor, b: Tensor, offs: Tensor, *_: Any, **__: Any) -> Tensor:
    """Products by groups of rows, of columns, or of the indices that are summed."""
    ends = offs.tolist()
    spans = [slice(start, end) for start, end in zip([0, *ends], ends, strict=False)]
    if b.dim() == 3:
        return torch.cat([a[span] @ b[g] for g, span in enumerate(spans)])
    if a.dim() == 3:
        return torch.cat([a[g] @ b[:, span] for g, span in enumerate(spans)], 1)
    return torch.stack([a[:, span] @ b[span] for span in spans])


IN_FLOAT64: Mapping[Any, Callable[..., Any]] = {torch.ops.aten._grouped_mm.default: _grouped_mm}
"""Ops that torch has in narrower types alone."""


def _raise(value: Any) -> Any:
    if isinstance(value, torch.dtype):
        return raised_dtype(value)
    if isinstance(value, Tensor) and raised_dtype(value.dtype) is not value.dtype:
        return value.to(raised_dtype(value.dtype))
    return value


def _chooses_dtype(func: Any, args: Any, kwargs: Mapping[str, Any]) -> bool:
    """Whether a factory is called that takes torch's default dtype."""
    takes = any(argument.name == "dtype" for argument in func._schema.arguments)
    given = kwargs.get("dtype") is not None or any(isinstance(x, Tensor) for x in args)
    return takes and not given


def _without_draws(func: Any, args: Any, kwargs: Mapping[str, Any]) -> Tensor:
    with torch.random.fork_rng(devices=[]):
        made: Tensor = func(*args, **kwargs)
    return made


_Forward = tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]
"""Outputs, the parameters that they came from, and the buffers that are yet to be written."""


class Plain:
    """The model on one device.

    Where shards draw random numbers of their own, no single device draws them: the traced graph
    with the program's draws stands for the model.
    """

    def __init__(
        self, subject: Subject, program: LocalProgram, values: Mapping[str, Tensor]
    ) -> None:
        self.subject, self.loss, self.values = subject, program.loss, dict(values)
        self.apart = _drawn(subject, program)[1] > 0
        self.held = _held(self._model(), subject, values) if not self.apart else {}

    def _model(self) -> nn.Module:
        self.module = build_real(self.subject.source.build, 0)
        self.module._apply(lambda x: x.to(raised_dtype(x.dtype)))
        return self.module

    def step(self, batch: Batch, seed: int) -> Step:
        """Forward, backward and update."""
        torch.manual_seed(seed)
        outputs, leaves, changed = self._traced(batch) if self.apart else self._eager(batch)
        with self._raising():
            wanted = seeds_of(outputs, self.loss, seed)
            _backward(outputs, wanted)
        gradients = {name: x.grad for name, x in leaves.items()}
        self._update(leaves, changed)
        state = {name: x.detach().clone() for name, x in self._state().items()}
        return Step({n: x.detach() for n, x in outputs.items()}, wanted, gradients, state)

    def _raising(self) -> AbstractContextManager[Any]:
        return nullcontext() if self.apart else Raising()

    def _eager(self, batch: Batch) -> _Forward:
        with self._raising():
            made = [x for _, x in tensors(self.subject.source.call(self.module, dict(batch)))]
        names = [r.name for r in self.subject.captured.results if r.kind == "output"]
        leaves = {leaf.name: self.held[leaf.name] for leaf in trained(self.subject)}
        return dict(zip(names, made, strict=True)), leaves, {}

    def _traced(self, batch: Batch) -> _Forward:
        names = [leaf.name for leaf in trained(self.subject)]
        leaves = {name: self.values[name].clone().requires_grad_() for name in names}
        subject = self.subject.resized({name: tuple(x.shape) for name, x in batch.items()})
        graph, _ = _drawn(subject, subject.program())
        made = run_graph(subject.captured, {**self.values, **batch, **leaves}, graph)
        named = list(zip(subject.captured.results, made, strict=True))
        outputs = {r.name: x for r, x in named if r.kind == "output"}
        return outputs, leaves, {r.name: x for r, x in named if r.kind == "mutation"}

    @torch.no_grad()
    def _update(self, leaves: Mapping[str, Tensor], changed: Mapping[str, Tensor]) -> None:
        for name, x in leaves.items():
            if x.grad is not None:
                x.sub_(RATE * x.grad)
                x.grad = None
            self.values[name] = x.detach()
        self.values.update(changed)

    def _state(self) -> dict[str, Tensor]:
        kept = [leaf.name for leaf in self.subject.captured.leaves if leaf.kind in STATE]
        if self.apart:
            return {name: self.values[name] for name in kept}
        held = tensors_of(self.module)
        return {name: held[name] for name in kept if name in held}


def _drawn(subject: Subject, program: LocalProgram) -> tuple[fx.Graph, int]:
    """The traced graph with what the program draws, and how many of its draws are by parts."""
    return with_program_draws(raise_to_float64(subject.captured.graph), program)


STATE = ("param", "buffer")


def trained(subject: Subject) -> list[Any]:
    """The leaves that get a gradient."""
    return [leaf for leaf in subject.captured.leaves if leaf.trainable]


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers under all of their names."""
    held: dict[str, Tensor] = dict(module.named_parameters(remove_duplicate=False))
    return {**held, **dict(module.named_buffers(remove_duplicate=False))}


@torch.no_grad()
def _held(model: nn.Module, subject: Subject, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    held = tensors_of(model)
    for leaf in subject.captured.leaves:
        if leaf.kind in STATE and leaf.name in held:
            held[leaf.name].copy_(values[leaf.name])
    return held


def seeds_of(outputs: Mapping[str, Tensor], loss: str | None, seed: int) -> dict[str, Tensor]:
    """The gradient that each output is given: one for the loss, else random ones for all."""
    if loss is None:
        return cotangents(outputs, seed)
    return {loss: torch.ones_like(outputs[loss])} if outputs[loss].requires_grad else {}


def _backward(outputs: Mapping[str, Tensor], seeds: Mapping[str, Tensor]) -> None:
    if seeds:
        torch.autograd.backward([outputs[name] for name in seeds], list(seeds.values()))
