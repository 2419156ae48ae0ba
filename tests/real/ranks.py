"""What one process does: the executor's steps on its shards, gathered and compared."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from shardlang.ir.layout import Layout
from shardlang.ir.program import LocalProgram
from shardlang.ir.shards import shard_of
from shardlang.runtime.groups import Groups
from shardlang.runtime.module import ShardedModule, held
from shardlang.runtime.whole import whole
from tests.real.maker import Maker
from tests.real.plain import RATE, STATE, Step
from tests.real.subjects import Batch, Subject

Differences = dict[str, float]


class Sharded:
    """The model on this process's shard of the mesh, made to take batches of every size."""

    def __init__(
        self,
        subject: Subject,
        program: LocalProgram,
        groups: Groups,
        values: Mapping[str, Tensor],
    ) -> None:
        self.subject, self.groups = subject, groups
        constants = subject.captured.constants.keys()
        shards = {
            leaf.name: shard_of(values[leaf.name], leaf.layout, groups.coord).clone()
            for leaf in program.leaves
            if leaf.kind != "input"
        }
        maker = Maker(subject, program, {name: values[name] for name in constants})
        self.module = ShardedModule(maker, groups, shards, constants)
        self.layouts = {leaf.name: leaf.layout for leaf in program.leaves if leaf.kind in STATE}

    def step(self, batch: Batch, reference: Step, seed: int) -> Iterator[tuple[str, float]]:
        """Forward, backward and update; how far each tensor is from the plain model's."""
        variants = held(self.module).variants
        loaded, mine = variants.choose((), variants.shard((), batch, strict=True))
        torch.manual_seed(seed)
        outputs = loaded.named_outputs(mine)
        layouts = {r.name: r.layout for r in loaded.program.results}
        top = _top(reference.outputs)
        for name, want in reference.outputs.items():
            yield f"output `{name}`", self._gap(outputs[name], want, layouts[name], top)
        self._backward(outputs, reference, layouts)
        for name, grad in reference.gradients.items():
            yield f"gradient of `{name}`", self._gradient_gap(name, grad, reference)
        self._update(reference.gradients)
        for name, layout in self.layouts.items():
            distance = self._gap(self._tensor(name), reference.state[name], layout, 0.0)
            yield f"`{name}` after the step", distance

    def _tensor(self, name: str) -> Tensor:
        """The parameter or buffer that the module now holds."""
        table, key = held(self.module).slots[name]
        found: Tensor = table[key]
        return found

    def _backward(
        self, outputs: Mapping[str, Tensor], reference: Step, layouts: Mapping[str, Layout]
    ) -> None:
        at = self.groups.coord
        seeds = {name: shard_of(x, layouts[name], at) for name, x in reference.cotangents.items()}
        if seeds:
            torch.autograd.backward([outputs[name] for name in seeds], list(seeds.values()))

    def _gradient_gap(self, name: str, want: Tensor | None, reference: Step) -> float:
        """A gradient that is not there counts as zero, on both sides."""
        if name not in self.layouts:
            return 0.0 if want is None or not want.any() else float("inf")
        x = self._tensor(name)
        mine = torch.zeros_like(x) if x.grad is None else x.grad
        want = torch.zeros(self.layouts[name].shape, dtype=x.dtype) if want is None else want
        return self._gap(mine, want, self.layouts[name], _top(reference.gradients))

    def _gap(self, shard: Tensor, want: Tensor, layout: Layout, top: float) -> float:
        return gap(whole(shard.detach(), layout, self.groups), want, top)

    @torch.no_grad()
    def _update(self, gradients: Mapping[str, Tensor | None]) -> None:
        for x in (self._tensor(name) for name in gradients if name in self.layouts):
            if x.grad is not None:
                x.sub_(RATE * x.grad)
                x.grad = None


def gap(mine: Tensor, want: Tensor, top: float) -> float:
    """max|a-b| / max(max|b|, 1e-3 top); infinite unless shape, dtype, infinities and NaN agree."""
    if mine.shape != want.shape or mine.dtype != want.dtype:
        return float("inf")
    if not (want.is_floating_point() or want.is_complex()):
        return 0.0 if torch.equal(mine, want) else float("inf")
    finite = want.isfinite()
    if not torch.equal(finite, mine.isfinite()) or not _same(mine[~finite], want[~finite]):
        return float("inf")
    scale = max(_size(want), 1e-3 * top) or 1.0
    return _size(mine[finite] - want[finite]) / scale


def _same(a: Tensor, b: Tensor) -> bool:
    return bool(((a == b) | (a.isnan() & b.isnan())).all())


def _size(value: Tensor | None) -> float:
    """The largest finite number."""
    if value is None or value.dtype is torch.bool:
        return 0.0
    found = value[value.isfinite()].abs()
    return float(found.max()) if found.numel() else 0.0


def _top(values: Mapping[str, Tensor | None]) -> float:
    return max((_size(value) for value in values.values()), default=0.0)


def differences(
    subject: Subject,
    program: LocalProgram,
    groups: Groups,
    values: Mapping[str, Tensor],
    batches: Sequence[Batch],
    reference: Sequence[Step],
) -> Differences:
    """How far every tensor of every step is from the plain model's, on this process."""
    sharded = Sharded(subject, program, groups, values)
    found: Differences = {}
    for i, (batch, step) in enumerate(zip(batches, reference, strict=True)):
        for what, distance in sharded.step(batch, step, i):
            found[f"step {i + 1}, {what}"] = distance
    return found
