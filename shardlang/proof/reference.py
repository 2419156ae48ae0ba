"""The reference: the traced graph on one device, in float64, with its gradients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx

from shardlang.capture import Captured, run_graph
from shardlang.ir.leaf import ResultKind
from shardlang.proof.values import cotangents


@dataclass(frozen=True, slots=True)
class Setting:
    """What a reference is computed from.

    Attributes:
        graph: the float64 form of the traced graph.
        values: the global value of every leaf.
        trainable: the parameters whose gradients are compared; none in eval mode.
        loss: the result that gradients start from; without one, all results do.
        scale: with what the gradient of the loss begins.
    """

    captured: Captured
    graph: fx.Graph
    values: Mapping[str, Tensor]
    trainable: Sequence[str]
    loss: str | None
    seed: int
    scale: float = 1.0

    def of(self, graph: fx.Graph, values: Mapping[str, Tensor]) -> Setting:
        """The same with another form of the graph and other values."""
        return replace(self, graph=graph, values=values)


class Reference:
    """Results by name, the cotangents that they are seeded with, and gradients by parameter."""

    def __init__(self, setting: Setting) -> None:
        self.setting, self.captured, self.graph = setting, setting.captured, setting.graph
        self.values, self.seed = setting.values, setting.seed
        self.trainable, self.loss = list(setting.trainable), setting.loss
        leaves = self.fresh_leaves()
        torch.manual_seed(self.seed)
        with torch.set_grad_enabled(bool(self.trainable)):
            made = run_graph(self.captured, leaves, self.graph)
        pairs = [(r, v) for r, v in zip(self.captured.results, made, strict=True)
                 if isinstance(v, Tensor)]  # fmt: skip
        self.results: dict[str, Tensor] = {result.name: value for result, value in pairs}
        self.cotangents = self._cotangents(
            {r.name: v for r, v in pairs if r.kind is ResultKind.OUTPUT}
        )
        self.gradients = self._backward(leaves)

    def fresh_leaves(self) -> dict[str, Tensor]:
        """Copies of the leaf values, which an op might write; trainable ones as autograd leaves."""
        wanted = set(self.trainable)
        return {
            name: value.detach().clone().requires_grad_(name in wanted)
            for name, value in self.values.items()
        }

    def _cotangents(self, outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if not self.trainable:
            return {}
        if self.loss is None:
            return cotangents(outputs, self.seed)
        loss = outputs[self.loss]
        seed = torch.full_like(loss, self.setting.scale)
        return {self.loss: seed} if loss.requires_grad else {}

    def _backward(self, leaves: Mapping[str, Tensor]) -> dict[str, Tensor | None]:
        if not self.cotangents:
            return {}
        roots = [self.results[name] for name in self.cotangents]
        torch.autograd.backward(roots, [self.cotangents[name] for name in self.cotangents])
        return {name: leaves[name].grad for name in self.trainable}
