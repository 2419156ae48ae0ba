"""The program as an autograd function: its own forward and backward, in the place of autograd's.

To a loop it is what a call of the model is: it may be called several times before a backward, its
graph may be retained, and gradients may start from any of its results. The backward is written for
the results that a gradient starts from when the first such gradient comes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, fx

from shardlang.ir.compat import AttentionKernels as Kernels
from shardlang.ir.compat import attention_kernels, clear_saved, keeps_graph
from shardlang.ir.leaf import LeafKind, ResultKind
from shardlang.ir.program import LocalProgram, differentiable
from shardlang.ir.step import StepProgram, arrives, has_records, makes_memory
from shardlang.runtime.autograd import Context
from shardlang.runtime.checks import check_same_collectives
from shardlang.runtime.errors import RunError
from shardlang.runtime.groups import Groups
from shardlang.runtime.lanes import lanes
from shardlang.runtime.once import once
from shardlang.runtime.region import Regions
from shardlang.runtime.sharding import Sharding
from shardlang.runtime.step_executor import Backward, Forward, load_backward, load_forward
from shardlang.runtime.tensor import arrived, own, sharded
from shardlang.runtime.whole import held_shard
from shardlang.vjp.at_device import written_for

StepWriter = Callable[[LocalProgram, Collection[str], Collection[str]], StepProgram]
"""Writes the step program for the leaves that are trained and the results with a cotangent."""


@dataclass(frozen=True, slots=True)
class _Front:
    """A forward, and the kernels of attention of which it and its backward choose."""

    half: Forward
    kernels: Kernels


@dataclass(frozen=True, slots=True)
class _Back:
    """A backward, and of each gradient that it gives the place of the leaf.

    With each place comes whether the gradient arrives in memory of its own.
    """

    half: Backward
    places: list[tuple[int, bool]]


class Stepped:
    """A program with its gradients, for one choice of leaves that get one."""

    def __init__(
        self,
        program: LocalProgram,
        groups: Groups,
        trained: frozenset[str],
        write: StepWriter,
        regions: Regions | None = None,
    ) -> None:
        """Load forward and backward. Collective: construct it on every rank.

        Args:
            trained: the leaves that get a gradient; none to run the forward alone.
            regions: what compiles them; None to run them op by op.

        Raises:
            RunError: SH0602, the ranks have written different programs.
        """
        self.program, self.groups, self.trained, self.write = program, groups, trained, write
        self.regions = regions
        self.ends = differentiable(program) if trained else []
        self._steps: dict[tuple[str, ...], StepProgram] = {}
        whole = self._written(self.ends)
        self.lanes, self._by_kernel = lanes(whole.graph, groups), has_records(whole)
        self._whole, self._forwards = whole, dict[Kernels, _Front]()
        self._reached = frozenset(whole.gradients)  # autograd would call hooks of others with None
        self.outputs = [r.name for r in program.results]
        written = {r.name for r in program.results if r.kind is ResultKind.MUTATION}
        self.unwritten = {
            leaf.name
            for leaf in program.leaves
            if leaf.kind is not LeafKind.INPUT and leaf.name not in written
        }
        self.parts = {
            i: Sharding(leaf.layout.unlabelled(), groups)
            for i, leaf in enumerate(program.leaves)
            if leaf.kind in (LeafKind.PARAM, LeafKind.BUFFER) and groups.mesh.devices > 1
        }
        loss = [name for name in self.ends if program.loss in (None, name)]
        self._backwards: dict[tuple[Kernels, tuple[str, ...]], _Back] = {}
        forward = self.forward()
        if loss:
            self.backward(tuple(loss), forward)

    def __call__(self, leaves: Sequence[Tensor], made: list[Tensor]) -> Sequence[Tensor]:
        """The results, whose gradients lead to the leaves.

        Args:
            made: takes the results too, as soon as they are there: a call within
                `torch.utils.checkpoint` may be left when what its backward reads has been saved.
        """
        if not self.trained:
            made += self._forward_alone(leaves)
            return made
        pairs = zip(self.program.leaves, leaves, strict=True)
        given = [
            x if leaf.name in self._reached or not x.requires_grad else x.detach()
            for leaf, x in pairs
        ]
        results: Sequence[Tensor] = _Step.apply(self, made, *given)  # type: ignore[no-untyped-call]
        return results

    @torch.no_grad()
    def _forward_alone(self, leaves: Sequence[Tensor]) -> Sequence[Tensor]:
        results, _ = self.forward().half.run(*map(held_shard, leaves))
        return tuple(results)

    def forward(self) -> _Front:
        """The forward, by the kernels of attention that are allowed now."""
        kernels = attention_kernels() if self._by_kernel else ()
        if kernels not in self._forwards:
            step = self._here(self._whole, kernels)
            self._forwards[kernels] = _Front(load_forward(step, self.lanes, self.regions), kernels)
        return self._forwards[kernels]

    def _here(self, step: StepProgram, kernels: Kernels) -> StepProgram:
        """A step as this device runs it."""
        return written_for(step, self.groups.coord, self.groups.device, kernels)

    def _written(self, given: Collection[str]) -> StepProgram:
        """The step for the results whose cotangents are given, the same on all ranks."""
        if tuple(given) not in self._steps:
            step = self.write(self.program, self.trained, given)
            check_same_collectives(step, self.groups)
            self._steps[tuple(given)] = step
        return self._steps[tuple(given)]

    def backward(self, given: tuple[str, ...], front: _Front) -> _Back:
        """The backward of a forward, from some results."""
        key = front.kernels, given
        if key not in self._backwards:
            step = self._here(self._written(given), front.kernels)
            places = {leaf.name: i for i, leaf in enumerate(self.program.leaves)}
            half = load_backward(step, self.lanes, front.half.saved, self.regions)
            pairs = zip(step.gradients, step.returned[1], strict=True)
            alone = self._alone(step.returned[1])
            made = [(places[name], node in alone) for name, node in pairs]
            self._backwards[key] = _Back(half, made)
        return self._backwards[key]

    def _alone(self, gradients: Sequence[fx.Node]) -> set[fx.Node]:
        """Those that lie in memory which nobody else uses, now or in a later call."""
        found = {node for node in gradients if arrives(node) and gradients.count(node) == 1}
        if self.regions is None or self.regions.lasting:
            return found
        return {node for node in found if not makes_memory(node.target)}


_CHANGED = "modified by an inplace operation"
"""What PyTorch says of a saved tensor that is no longer as it was."""

_TWICE = (
    "the backward of this call has run, and its graph was not retained: give `retain_graph=True` to"
    " all but the last"
)


class _Saving(Context, Protocol):
    stepped: Stepped
    front: _Front
    versions: Mapping[str, tuple[Tensor, int]]
    records: dict[int, object] | None
    saved_tensors: Sequence[Tensor]

    def save_for_backward(self, *tensors: Tensor) -> None: ...


class _Step(torch.autograd.Function):
    """Forward and backward of a program."""

    @staticmethod
    def forward(
        ctx: _Saving, stepped: Stepped, made: list[Tensor], *leaves: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.stepped, ctx.front = stepped, stepped.forward()
        leaves = tuple(map(held_shard, leaves))
        held = zip(stepped.program.leaves, leaves, strict=True)
        ctx.versions = {
            leaf.name: (x, x._version)
            for leaf, x in held
            if leaf.name in stepped.unwritten and not x.is_inference()
        }
        ctx.set_materialize_grads(False)
        results, saved = ctx.front.half.run(*leaves)
        made += results
        tensors = [x for x in saved if isinstance(x, Tensor)]
        ctx.records = {i: x for i, x in enumerate(saved) if not isinstance(x, Tensor)}
        ctx.save_for_backward(*tensors)
        ends = set(stepped.ends)
        fixed = [x for x, name in zip(results, stepped.outputs, strict=True) if name not in ends]
        ctx.mark_non_differentiable(*fixed)
        return tuple(results)

    @staticmethod
    @once
    def backward(ctx: _Saving, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        stepped = ctx.stepped
        pairs = zip(stepped.outputs, grads, strict=True)
        given = {name: grad for name, grad in pairs if grad is not None and name in stepped.ends}
        back = stepped.backward(tuple(given), ctx.front)
        saved = _saved(ctx)
        if not keeps_graph():
            clear_saved(ctx)
            ctx.records = None
        made = list(back.half.run(saved, list(given.values())))
        found: list[Tensor | None] = [None] * len(stepped.program.leaves)
        for place, own_memory in back.places:
            gradient, part = made.pop(0), stepped.parts.get(place)
            gradient = arrived(gradient) if own_memory else gradient
            found[place] = gradient if part is None else sharded(own(gradient), part)
        return None, None, *found


def _saved(ctx: _Saving) -> list[object]:
    """What the forward handed over.

    Raises:
        RunError: SH0641, a parameter or buffer has changed since.
    """
    if ctx.records is None:
        raise RuntimeError(_TWICE)
    try:
        records, tensors = ctx.records, iter(ctx.saved_tensors)
    except RuntimeError as error:
        changed = [name for name, (x, before) in ctx.versions.items() if x._version != before]
        if not changed or _CHANGED not in str(error):
            raise
        raise RunError(
            "SH0641",
            f"`{changed[0]}` changed between the forward and its backward",
            help="run the backward before the optimizer's step, or call the model again",
        ) from error
    places = range(len(ctx.front.half.saved))
    return [records[i] if i in records else next(tensors) for i in places]
