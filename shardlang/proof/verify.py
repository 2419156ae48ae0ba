"""verify: run the reference and the simulated devices, and compare everything."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import fx

from shardlang.capture import Captured, InputSpec, ModelSource, raise_to_float64
from shardlang.capture.index_bounds import check_values
from shardlang.compiler.build import Statements, build_graph
from shardlang.ir.accumulated import MICROBATCH
from shardlang.ir.collection import rarely_collected
from shardlang.ir.node import info
from shardlang.ir.program import LocalProgram
from shardlang.passes.pipeline import run_passes
from shardlang.passes.rewrite.localize import to_program
from shardlang.proof.accumulated import Along, SimulatedAccumulation
from shardlang.proof.compare import Simulated, compare, explain
from shardlang.proof.differences import TOLERANCE, Mismatch
from shardlang.proof.draws import with_program_draws
from shardlang.proof.eager import compare_eager, run_model
from shardlang.proof.inputs import proof_inputs
from shardlang.proof.locate import first_difference
from shardlang.proof.reference import Reference, Setting
from shardlang.proof.report import Report
from shardlang.proof.typed import compare_typed
from shardlang.proof.updates import ADAMW, Recipe, compare_updates
from shardlang.proof.values import all_values
from shardlang.runtime.simulate import DeviceFault


@rarely_collected()
def verify(
    captured: Captured,
    statements: Statements,
    source: ModelSource,
    specs: Sequence[InputSpec],
    *,
    seed: int = 0,
    train: bool = True,
    recipe: Recipe = ADAMW,
    along: Along | None = None,
) -> Report:
    """Prove that the sharded program computes what the model computes.

    Every floating dtype is raised to float64 on both sides. Outputs, loss and the gradient of every
    parameter are compared on every device, and the parameters and the optimizer's states after two
    updates; then those of the model itself, run eagerly at its own
    dtype, are compared with the reference. Where shards draw random numbers apart, the reference
    takes the numbers that they draw (`shardlang.proof.draws`). Inputs are the model file's own
    first batch where there is one that fits (`shardlang.proof.inputs`). What differs by more than
    the tolerance is held against what rounding does (`shardlang.proof.conditioning`).

    Args:
        along: how the step of several microbatches is computed, that of a pipeline in the order of
            its schedule: it is compared too, and the updates follow it.

    What a spec states of types is compared at these types (`shardlang.proof.typed`).

    Raises:
        ShardError: the model cannot be sharded as stated.
        CaptureError: the model fails on these inputs or cannot take them, or the file's `batches`
            fails.
    """
    raised = raise_to_float64(captured.graph)
    program = to_program(run_passes(build_graph(captured, statements, raised)))
    inputs, fed = proof_inputs(source, specs, seed)
    check_values(captured, inputs)
    values = all_values(captured, source, inputs, seed)
    trainable = [leaf.name for leaf in captured.leaves if leaf.trainable] if train else []
    drawn, draws_apart = with_program_draws(raised, program)
    setting = Setting(captured, drawn, values, trainable, program.loss, seed)
    with _own_failures(source, setting):
        reference = Reference(setting)
    try:
        run = Simulated(program, reference)
        report = compare(program, reference, run)
        if train and program.loss and report.gradients and report.equal and not report.explained:
            if along is None:
                report.updates = compare_updates(program, reference, run, recipe)
            else:
                _compare_accumulated(along, reference, recipe, report)
            report.recipe = str(recipe)
            with _own_failures(source, setting):
                report.typed = compare_typed(captured, statements, reference, along)
    except DeviceFault as fault:
        return failed(program, fault)
    report.draws_apart, report.inputs = draws_apart, fed
    report.not_compared = _why_no_gradients(reference, train)
    report.eager = compare_eager(source, reference)
    if not report.equal:
        explain(report, reference)
    if not report.equal and report.traced_as_eager:
        report.first = first_difference(program, reference) or first_leaf(program, report)
    return report


def _compare_accumulated(
    along: Along, reference: Reference, recipe: Recipe, report: Report
) -> None:
    """The step of several microbatches, and two updates by it, beside the reference.

    Where shards draw random numbers apart, those of a microbatch do too, and the reference takes
    them.
    """
    raised = raise_to_float64(along.captured.graph)
    program = to_program(run_passes(build_graph(along.captured, along.statements, raised)))
    drawn, draws_apart = with_program_draws(raised, program)
    if draws_apart:
        reference = Reference(reference.setting.of(drawn, reference.values))
    run = SimulatedAccumulation(program, reference, along.schedule)
    report.accumulated, report.microbatches = run.differences(), program.mesh[MICROBATCH].size
    report.pipeline = along.pipeline
    report.updates = compare_updates(program, reference, run, recipe)


@contextmanager
def _own_failures(source: ModelSource, setting: Setting) -> Iterator[None]:
    """Where the traced graph fails and the model itself does too, the model's failure."""
    try:
        yield
    except (RuntimeError, IndexError):
        run_model(source, setting)
        raise


def _why_no_gradients(reference: Reference, train: bool) -> str:
    """Why no gradients are compared; empty where they are."""
    if reference.gradients:
        return ""
    if not train:
        return "the model is in evaluation mode"
    if not reference.trainable:
        return "no parameter requires one"
    return "no output carries one"


def first_leaf(program: LocalProgram, report: Report) -> Mismatch | None:
    """The first parameter whose gradient alone is wrong: every value on the way to it is right."""
    for leaf in program.leaves:
        error = (report.gradients or {}).get(leaf.name, 0.0)
        if not error <= TOLERANCE:
            module = leaf.name.rpartition(".")[0]
            return Mismatch(leaf.name, module, "", str(leaf.layout), error, True)
    return None


def failed(program: LocalProgram, fault: DeviceFault) -> Report:
    """The report of a program that does not even run."""
    node: fx.Node = fault.node
    where = info(node).module, info(node).source
    first = Mismatch(node.name, *where, str(info(node).layout), float("inf"), False)
    reason = f"the program fails: {fault}"
    return Report(
        program.mesh.devices, outputs={node.name: float("inf")}, first=first, not_compared=reason
    )
