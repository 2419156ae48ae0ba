"""Comparing the simulated devices with the reference, result by result and gradient by gradient."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from shardlang.ir.layout import Layout
from shardlang.ir.mesh import Coord
from shardlang.ir.program import LocalProgram
from shardlang.ir.shards import shard_of
from shardlang.ir.step import StepProgram
from shardlang.passes.step.write_step import write_step
from shardlang.proof.conditioning import Conditioning, Rounding
from shardlang.proof.distance import gap, is_finite, size
from shardlang.proof.reference import Reference
from shardlang.proof.report import Report
from shardlang.runtime.simulate import PerDevice, Watch
from shardlang.runtime.simulate_step import StepSimulator

LARGEST = 1e-4
"""Where rounding makes a larger difference, a fault could hide behind it."""


def compare(program: LocalProgram, reference: Reference, run: Simulated) -> Report:
    """Compare a simulated program with the reference, device by device."""
    named = run.results
    layouts = {r.name: r.layout for r in program.results}
    report = Report(program.mesh.devices, count=len(reference.trainable))
    top = largest(reference.results)
    for name, want in reference.results.items():
        report.outputs[name] = difference(named[name], want, layouts[name], run.coords, top)
    if program.loss is not None:
        report.loss_name = program.loss
        report.loss = _loss(program.loss, named, reference, report)
    if reference.gradients:
        _compare_gradients(report, program, reference, run)
    report.not_finite = _not_finite(reference)
    return report


class Simulated:
    """The step program on simulated devices, with the values and cotangents of a reference."""

    def __init__(
        self,
        program: LocalProgram,
        reference: Reference,
        watch: Watch | None = None,
        after: tuple[Simulated, Mapping[str, PerDevice]] | None = None,
    ) -> None:
        """Run it.

        Args:
            after: an earlier run of the program, and the parameters that an update left.

        Raises:
            DeviceFault: an op fails on a device.
        """
        before, updated = after or (None, {})
        wanted = reference.trainable, reference.cotangents
        self.step: StepProgram = before.step if before else write_step(program, *wanted)
        sim = StepSimulator(self.step, watch)
        self.coords = sim.coords
        self.leaves: dict[str, PerDevice] = {
            x.name: updated[x.name]
            if x.name in updated
            else sim.place(reference.values[x.name], x.at_rest)
            for x in program.leaves
        }
        layouts = {r.name: r.layout for r in program.results}
        given = {
            name: sim.place(reference.cotangents[name], layouts[name])
            for name in self.step.cotangents
        }
        torch.manual_seed(reference.seed)
        made, self.gradients = sim.run(self.leaves, given)
        names = [r.name for r in program.results]
        self.results: dict[str, PerDevice] = dict(zip(names, made, strict=True))
        self._program = program

    def again(self, reference: Reference, values: Mapping[str, PerDevice]) -> Simulated:
        """The program once more, on parameters that an update left."""
        return Simulated(self._program, reference, after=(self, values))


def explain(report: Report, reference: Reference) -> None:
    """Put into a report which of its differences rounding explains."""
    tops = largest(reference.results), largest(reference.gradients)
    results, gradients = (
        lambda _, a, b, top=top: gap(a, b) / scale_of(b, top) for top in tops
    )  # fmt: skip
    rounding = Rounding.in_float64(reference)
    measured = Conditioning(reference, rounding, (results, gradients), LARGEST)
    for name, error, backward in list(report.excess()):
        found = measured.explain(name, error, backward=backward)
        if found is None:
            continue
        report.explained.append(found)
        if found.kind == "zero":
            errors = report.gradients if backward else report.outputs
            assert errors is not None
            errors[name] = found.beside_terms


def largest(values: Mapping[str, Tensor | None]) -> float:
    """The largest number of all tensors."""
    return max(map(size, values.values()), default=0.0)


def _loss(
    name: str, named: Mapping[str, PerDevice], reference: Reference, report: Report
) -> dict[str, float]:
    return {
        "reference": reference.results[name].item(),
        "sharded": named[name][0].item(),
        "error": report.outputs[name],
    }


def _compare_gradients(
    report: Report,
    program: LocalProgram,
    reference: Reference,
    run: Simulated,
) -> None:
    report.gradients = {}
    top = largest(reference.gradients)
    layouts = {leaf.name: leaf.layout for leaf in program.leaves}
    for name, given in reference.gradients.items():
        mine = run.gradients.get(name)
        if given is None and mine is None:
            report.unused.append(name)
            continue
        want = torch.zeros_like(reference.values[name]) if given is None else given
        layout = layouts[name]
        if mine is None:
            mine = [torch.zeros_like(shard_of(want, layout, at)) for at in run.coords]
        report.gradients[name] = difference(mine, want, layout, run.coords, top)
        if want.numel() and not bool(want.any()):
            report.zero.append(name)


def _not_finite(reference: Reference) -> dict[str, list[str]]:
    """The results and gradients that hold infinite or undefined numbers."""
    return {
        what: [name for name, value in values if value is not None and not is_finite(value)]
        for what, values in (
            ("outputs", reference.results.items()),
            ("gradients", reference.gradients.items()),
        )
    }


def scale_of(want: Tensor, top: float) -> float:
    """What a difference is measured by: max|b|, or a thousandth of the largest of its kind."""
    return max(size(want), 1e-3 * top) or 1.0


def difference(
    shards: Sequence[Tensor], want: Tensor, layout: Layout, coords: Sequence[Coord], top: float
) -> float:
    """max|a-b| / max(max|b|, 1e-3 top) over all devices; infinite where no number says it."""
    gaps = (
        gap(shard, shard_of(want.detach(), layout, at))
        for shard, at in zip(shards, coords, strict=True)
    )
    return max(gaps, default=0.0) / scale_of(want, top)
