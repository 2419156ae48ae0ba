"""verify: run the reference and the simulated devices, and compare everything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from shardlang.build import Placements, build_graph
from shardlang.capture import Captured, InputSpec, ModelSource, raise_to_float64, run_graph
from shardlang.ir.pieces import piece_of
from shardlang.ir.program import LocalProgram
from shardlang.passes.localize import to_program
from shardlang.passes.pipeline import run_passes
from shardlang.proof.draws import with_program_draws
from shardlang.proof.eager import Expected, compare_eager
from shardlang.proof.locate import first_difference
from shardlang.proof.report import TOLERANCE, Mismatch, Report
from shardlang.proof.values import all_values, cotangents
from shardlang.runtime.simulate import DeviceFault, Simulator


def verify(
    captured: Captured,
    placements: Placements,
    source: ModelSource,
    specs: Sequence[InputSpec],
    *,
    seed: int = 0,
    train: bool = True,
) -> Report:
    """Prove that the sharded program computes what the model computes.

    Every floating dtype is raised to float64 on both sides. Outputs, loss and the gradient of every
    parameter are compared on every device; then those of the model itself, run eagerly at its own
    dtype, are compared with the reference. Where shards draw random numbers apart, the reference
    takes the numbers that they draw (`shardlang.proof.draws`).

    Raises:
        ShardError: the model cannot be sharded as stated.
    """
    raised = raise_to_float64(captured.graph)
    program = to_program(run_passes(build_graph(captured, placements, raised)))
    values = all_values(captured, source, specs, seed)
    trainable = [leaf.name for leaf in captured.leaves if leaf.trainable] if train else []
    drawn, draws_apart = with_program_draws(raised, program)
    reference = Reference(captured, drawn, values, trainable, program.loss, seed)
    try:
        report = compare(program, reference, values)
    except DeviceFault as fault:
        return failed(program, fault)
    report.draws_apart = draws_apart
    expected = Expected(reference.results, reference.cotangents, reference.gradients)
    report.eager = compare_eager(captured, source, values, expected, seed)
    if not report.ok and report.traced_as_eager:
        report.first = first_difference(program, reference) or first_leaf(program, report)
    return report


class Reference:
    """The traced graph on one device, in float64, with its gradients."""

    def __init__(
        self,
        captured: Captured,
        graph: fx.Graph,
        values: Mapping[str, Tensor],
        trainable: Sequence[str],
        loss: str | None,
        seed: int,
    ) -> None:
        self.captured, self.graph, self.values, self.seed = captured, graph, values, seed
        self.trainable, self.loss = list(trainable), loss
        leaves = self.fresh_leaves()
        torch.manual_seed(seed)
        with torch.set_grad_enabled(bool(self.trainable)):
            results = run_graph(captured, leaves, graph)
        names = [result.name for result in captured.results]
        kinds = [result.kind for result in captured.results]
        self.results: dict[str, Tensor] = {
            n: r for n, r in zip(names, results, strict=True) if isinstance(r, Tensor)
        }
        outputs = {
            n: self.results[n]
            for n, k in zip(names, kinds, strict=True)
            if k == "output" and n in self.results
        }
        self.cotangents = self._cotangents(outputs)
        self.gradients = self._backward(leaves)

    def fresh_leaves(self) -> dict[str, Tensor]:
        """Leaf values, trainable ones as new autograd leaves."""
        wanted = set(self.trainable)
        return {
            name: value.detach().clone().requires_grad_() if name in wanted else value
            for name, value in self.values.items()
        }

    def _cotangents(self, outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if not self.trainable:
            return {}
        if self.loss is not None:
            return {self.loss: torch.ones_like(outputs[self.loss])}
        return cotangents(outputs, self.seed)

    def _backward(self, leaves: Mapping[str, Tensor]) -> dict[str, Tensor | None]:
        if not self.cotangents:
            return {}
        roots = [self.results[name] for name in self.cotangents]
        torch.autograd.backward(roots, [self.cotangents[name] for name in self.cotangents])
        return {name: leaves[name].grad for name in self.trainable}


def compare(program: LocalProgram, reference: Reference, values: Mapping[str, Tensor]) -> Report:
    """Simulate the program and compare it with the reference, device by device."""
    sim = Simulator(program)
    local: dict[str, list[Tensor]] = {}
    for leaf in program.leaves:
        local[leaf.name] = sim.place(leaf.name, values[leaf.name])
        if leaf.name in reference.gradients:
            for piece in local[leaf.name]:
                piece.requires_grad_()
    torch.manual_seed(reference.seed)
    with torch.set_grad_enabled(bool(reference.trainable)):
        results = sim.run(local)
    named = {r.name: v for r, v in zip(program.results, _present(results), strict=True)}
    layouts = {r.name: r.layout for r in program.results}
    report = Report(program.mesh.devices, count=len(reference.trainable))
    top = max((_size(v) for v in reference.results.values()), default=0.0)
    for name, want in reference.results.items():
        report.outputs[name] = difference(named[name], want, layouts[name], sim.coords, top)
    if program.loss is not None:
        report.loss = _loss(program.loss, named, reference, report)
    if reference.gradients:
        _backward(sim, program, named, layouts, reference)
        _compare_gradients(report, program, reference, local, sim.coords)
    return report


def first_leaf(program: LocalProgram, report: Report) -> Mismatch | None:
    """The first parameter whose gradient alone is wrong: every value on the way to it is right."""
    for leaf in program.leaves:
        error = (report.gradients or {}).get(leaf.name, 0.0)
        if error > TOLERANCE:
            module = leaf.name.rpartition(".")[0]
            return Mismatch(leaf.name, module, "", str(leaf.layout), error, True)
    return None


def failed(program: LocalProgram, fault: DeviceFault) -> Report:
    """The report of a program that does not even run."""
    node = fault.node
    where = node.meta.get("module", ""), node.meta.get("source", "")
    first = Mismatch(node.name, *where, str(node.meta.get("layout", "")), float("inf"), False)
    return Report(program.mesh.devices, outputs={node.name: float("inf")}, first=first)


def _present(results: list[Any]) -> list[Any]:
    return [value for value in results if value[0] is not None]


def _loss(
    name: str, named: Mapping[str, Any], reference: Reference, report: Report
) -> dict[str, float]:
    return {
        "reference": reference.results[name].item(),
        "sharded": named[name][0].item(),
        "error": report.outputs[name],
    }


def _backward(
    sim: Simulator,
    program: LocalProgram,
    named: Mapping[str, list[Tensor]],
    layouts: Mapping[str, Any],
    reference: Reference,
) -> None:
    """Seed every device with its piece of the cotangents."""
    roots, seeds = [], []
    for name, cotangent in reference.cotangents.items():
        for value, at in zip(named[name], sim.coords, strict=True):
            if value.requires_grad:
                roots.append(value)
                seeds.append(piece_of(cotangent, layouts[name], at))
    torch.autograd.backward(roots, seeds)


def _compare_gradients(
    report: Report,
    program: LocalProgram,
    reference: Reference,
    local: Mapping[str, list[Tensor]],
    coords: Sequence[dict[str, int]],
) -> None:
    report.gradients = {}
    known = [g for g in reference.gradients.values() if g is not None]
    top = max((_size(g) for g in known), default=0.0)
    placed = {leaf.name: leaf.layout for leaf in program.leaves}
    for name, want in reference.gradients.items():
        mine = [piece.grad for piece in local[name]]
        if want is None and all(g is None for g in mine):
            report.unused.append(name)
            continue
        want = torch.zeros_like(reference.values[name]) if want is None else want
        filled = [
            torch.zeros_like(p) if g is None else g for p, g in zip(local[name], mine, strict=True)
        ]
        report.gradients[name] = difference(filled, want, placed[name], coords, top)


def difference(
    pieces: Sequence[Tensor],
    want: Tensor,
    layout: Any,
    coords: Sequence[dict[str, int]],
    top: float,
) -> float:
    """max|a-b| / max(max|b|, 1e-3 top) over all devices; infinite where a shape is off."""
    scale = max(_size(want), 1e-3 * top) or 1.0
    worst = 0.0
    for piece, at in zip(pieces, coords, strict=True):
        cut = piece_of(want.detach(), layout, at)
        if piece.shape != cut.shape:
            return float("inf")
        worst = max(worst, _distance(piece.detach(), cut) / scale)
    return worst


def _distance(a: Tensor, b: Tensor) -> float:
    if a.numel() == 0:
        return 0.0
    if not (a.is_floating_point() or a.is_complex()):
        return 0.0 if torch.equal(a, b) else float("inf")
    same = (a == b) | (a.isnan() & b.isnan())
    gap = torch.where(same, torch.zeros_like(a), a - b).abs()
    worst = float(gap.max())
    return float("inf") if worst != worst else worst


def _size(value: Tensor) -> float:
    if value.numel() == 0 or value.dtype is torch.bool:
        return 0.0
    finite = value.detach().abs()
    finite = finite[torch.isfinite(finite)] if finite.is_floating_point() else finite
    return float(finite.max()) if finite.numel() else 0.0
