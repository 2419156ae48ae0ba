"""How far rounding carries a model: its reference, run again with every number a little off.

A difference that such a run shows as well is not a fault of a rule, of a pass or of tracing.
Integers stay: rounding leaves them, and what compares or indexes with them must not flip.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from shardlang.ir.node import info
from shardlang.ir.rewriter import copy_graph
from shardlang.proof.differences import Explained, Kind
from shardlang.proof.distance import counts, size, wide
from shardlang.proof.reference import Reference
from shardlang.rules.schema import Operator

RUNS = 3
"""How often the reference is run again."""

MARGIN = 32.0
"""A difference counts as rounding up to this many times the largest that the runs show."""

FARTHER = 1e4
"""How much larger, or smaller where numbers allow it, a second perturbation is: what is zero but
for rounding follows it in proportion, what is chaotic does not."""

FINE = 1e-12
"""Below this spacing of numbers the second perturbation is the larger one."""

NOTHING = 1e-9
"""A gradient is zero beside the loss below this part of it, where rounding is as large."""

Metric = Callable[[str, Tensor, Tensor], float]
"""The difference of a named result or gradient from the reference's, as the report gives it."""


class Nudged:
    """An op whose results are off by up to `eps`, relative to each number."""

    def __init__(self, target: Operator, eps: float, chosen: torch.Generator) -> None:
        self.target, self.eps, self.chosen = target, eps, chosen
        self.__name__ = f"nudged_{getattr(target, '__name__', 'op')}"

    def __call__(self, *args: object, **kwargs: object) -> object:
        """The op's results, nudged."""
        made = self.target(*args, **kwargs)
        return pytree.tree_map_only(Tensor, lambda x: nudge(x, self.eps, self.chosen), made)


def nudge(value: Tensor, eps: float, chosen: torch.Generator) -> Tensor:
    """A tensor with every number that is not an integer off by up to `eps` of it."""
    if not counts(value) or not eps or not value.numel():
        return value
    off = eps * (2 * torch.rand(value.shape, generator=chosen, dtype=torch.float64) - 1)
    real = torch.view_as_real(value.detach().resolve_conj()) if value.is_complex() else value
    whole = real.detach() == real.detach().round()
    off = off.masked_fill(whole.all(-1) if value.is_complex() else whole, 0.0)
    return (value * (1 + off)).to(value.dtype)


@dataclass(frozen=True, slots=True)
class Rounding:
    """The rounding of a model: the relative spacing of numbers at every node of its graph."""

    eps: Mapping[str, float]

    @classmethod
    def in_float64(cls, reference: Reference) -> Rounding:
        """That of the proof itself."""
        eps = torch.finfo(torch.float64).eps
        return cls({node.name: eps for node in reference.graph.nodes})

    @classmethod
    def own(cls, reference: Reference) -> Rounding:
        """That of the model at its own dtypes."""
        return cls({node.name: spacing(node) for node in reference.captured.graph.nodes})

    @property
    def largest(self) -> float:
        """The coarsest spacing on the way."""
        return max(self.eps.values(), default=0.0)

    def times(self, factor: float) -> Rounding:
        """A coarser one."""
        return Rounding({name: eps * factor for name, eps in self.eps.items()})


def spacing(node: fx.Node) -> float:
    """The largest relative spacing of the numbers that a node computes; 0 if it computes none."""
    vals = pytree.tree_leaves(info(node).value)
    kinds = [v.dtype for v in vals if isinstance(v, Tensor) and counts(v)]
    return max((torch.finfo(kind).eps for kind in kinds), default=0.0)


def perturbed(reference: Reference, rounding: Rounding, run: int) -> Reference:
    """The reference with all its numbers off by the rounding; the same draws in every run."""
    chosen = torch.Generator().manual_seed(reference.seed * 1000 + run)
    graph, _ = copy_graph(reference.graph)
    for node in graph.nodes:
        if node.op == "call_function":
            node.target = Nudged(node.target, rounding.eps.get(node.name, 0.0), chosen)
    names = {leaf.name: leaf.node for leaf in reference.captured.leaves}
    values = {
        name: nudge(value, rounding.eps.get(names.get(name, ""), 0.0), chosen)
        for name, value in reference.values.items()
    }
    return Reference(reference.setting.of(graph, values))


@dataclass(slots=True)
class Conditioning:
    """What rounding does to a reference, measured when it is asked for.

    Attributes:
        how: the metric of results, and that of gradients.
        limit: a tolerance beyond which nothing is proven.
    """

    reference: Reference
    rounding: Rounding
    how: tuple[Metric, Metric]
    limit: float
    near: dict[tuple[str, bool], float] | None = None
    far: dict[tuple[str, bool], float] | None = None

    def explain(self, name: str, error: float, *, backward: bool) -> Explained | None:
        """The explanation of a difference by rounding, if that is one."""
        if self.near is None:
            self.near = self._measure(self.rounding, RUNS)
        change = self.near.get((name, backward), 0.0)
        if not error <= MARGIN * change:
            return None
        kind = self._kind(name, change, backward)
        return Explained(name, backward, error, change, self.rounding.largest, kind)

    def _kind(self, name: str, change: float, backward: bool) -> Kind:
        if self._is_zero(name, change, backward):
            return "zero"
        return "ill-conditioned" if MARGIN * change <= self.limit else "lost"

    def _is_zero(self, name: str, change: float, backward: bool) -> bool:
        """Whether a value is rounding alone: no larger than that, and small or growing with it."""
        value = (self.reference.gradients if backward else self.reference.results)[name]
        assert value is not None
        own = self.how[backward](name, torch.zeros_like(value), value)
        if own > MARGIN * change:
            return False
        small = MARGIN * change <= self.limit or (backward and self._is_tiny(name, value))
        return small or self._grows(name, own, change, backward)

    def _is_tiny(self, name: str, gradient: Tensor) -> bool:
        """Whether a gradient times its parameter is nothing beside what is differentiated."""
        kept = self.reference
        whole = sum(float((wide(seed) * wide(kept.results[root])).abs().sum())
                    for root, seed in kept.cotangents.items())  # fmt: skip
        return size(gradient) * size(kept.values[name]) <= NOTHING * whole

    def _grows(self, name: str, own: float, change: float, backward: bool) -> bool:
        """Whether a value follows the perturbation in proportion, and is no larger."""
        if self.far is None:
            factor = 1 / FARTHER if self.rounding.largest > FINE else FARTHER
            self.far = self._measure(self.rounding.times(factor), 1)
        less, more = sorted((change, self.far.get((name, backward), 0.0)))
        return own <= MARGIN * less and more >= less * FARTHER / 100

    def _measure(self, rounding: Rounding, runs: int) -> dict[tuple[str, bool], float]:
        found: dict[tuple[str, bool], float] = {}
        for run in range(runs):
            for key, change in self._changes(rounding, run):
                found[key] = max(found.get(key, 0.0), change)
        return found

    def _changes(self, rounding: Rounding, run: int) -> list[tuple[tuple[str, bool], float]]:
        try:
            made = perturbed(self.reference, rounding, run)
        except RuntimeError:
            return []
        kept = self.reference
        forward = [(name, False, made.results[name], want) for name, want in kept.results.items()]
        backward = [
            (name, True, made.gradients[name], want) for name, want in kept.gradients.items()
        ]
        return [
            ((name, is_gradient), self.how[is_gradient](name, mine, want))
            for name, is_gradient, mine, want in forward + backward
            if mine is not None and want is not None
        ]
