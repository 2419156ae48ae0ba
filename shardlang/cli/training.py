"""One device's part in `shardlang run`: train, show, save, compare."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from shardlang.cli.common import Context
from shardlang.grammar.words import counted

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import torch

    from shardlang.compiler.driver import Compiled, CompileError
    from shardlang.runtime.groups import Groups
    from shardlang.runtime.module import ShardedModule
    from shardlang.runtime.save import Format
    from shardlang.runtime.stop import Stop
    from shardlang.runtime.trainer.records import Record
    from shardlang.runtime.trainer.run_folder import RunFolder
    from shardlang.runtime.trainer.trainer import Trainer
    from shardlang.spec import Spec
    from shardlang.training.run import Run
    from shardlang.training.saving import Saving


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line asks of a run."""

    steps: int
    data: Path | None
    save: Path | None
    device: str
    seed: int
    reference: bool
    compile: bool
    out: Path | None
    resume: bool
    timeout_s: float
    tensorboard: bool = False
    profile: int | None = None

    @property
    def saves(self) -> bool:
        """Whether a run that is asked to end has something to save."""
        return self.save is not None or self.out is not None

    def shared(self) -> dict[str, str]:
        """By option, in words, what all ranks must be given alike; empty for one that is not.

        Of a path that is whether there is one. Not `--resume`: of a job that begins again all
        follow the first rank.
        """
        flags = {
            "reference": self.reference, "compile": self.compile, "tensorboard": self.tensorboard,
            "data": self.data, "save": self.save, "out": self.out,
        }  # fmt: skip
        values = {
            "steps": self.steps, "device": self.device, "seed": self.seed,
            "profile": self.profile, "timeout": f"{self.timeout_s:g}",
        }  # fmt: skip
        return {
            **{name: f"--{name}" if given else "" for name, given in flags.items()},
            **{name: "" if x is None else f"--{name} {x}" for name, x in values.items()},
        }


def work(context: Context, spec: Spec, options: Options) -> None:
    """Compile and train on this device; rank 0 prints.

    Raises:
        Exit: a signal ended the run early, and the weights are saved.
    """
    from shardlang.compiler.driver import CompileError
    from shardlang.runtime.checks import check_same_options
    from shardlang.runtime.groups import check_world_size, join
    from shardlang.runtime.reports import reporting

    check_world_size(spec.mesh)
    compiled = _compile(context, spec)
    failure: CompileError | None = None
    with reporting(int(os.environ.get("RANK", "0"))):
        from shardlang.training.run import run_of

        run = run_of(compiled, options.steps, options.seed, options.data)
        groups = join(compiled.program.mesh, options.device, options.timeout_s)
        check_same_options(options.shared(), groups)
        try:
            found, ended = _train(context, run, groups, options)
        except CompileError as error:
            failure = error
    if failure is not None:
        _stop(context, failure)
    if found:
        _finish(context, found)
    if ended:
        raise click.exceptions.Exit(128 + ended)


def _train(
    context: Context, run: Run, groups: Groups, options: Options
) -> tuple[dict[str, object], int]:
    """The summary, on rank 0, and the signal that ended the run early, or 0. Collective."""
    from shardlang.ir.compat import backend_named
    from shardlang.runtime.backends import INDUCTOR
    from shardlang.runtime.groups import leave
    from shardlang.runtime.stop import Stop
    from shardlang.training.room import check_room
    from shardlang.training.run import not_finite, sharded_module, summary

    check_room(run.compiled, groups, options.out is not None)
    backend = backend_named(INDUCTOR) if options.compile else None
    module = sharded_module(run.compiled, groups, options.seed, backend)
    _check_before(context, run, module, groups, options)
    stop = Stop(groups, saves=options.saves)
    kept = _Kept(context, run.compiled, options)
    with stop, kept.folder(run, groups):
        show = lambda r: _shown(context, r, options.steps, stop)  # noqa: E731
        records = run.sharded(module, show, stop, kept.begin)
        found = summary(run, module, records)
        kept.end(stop, records, found)
        if options.save is not None:
            stop.saving()
            found["saved"] = str(options.save)
            _save(context, run, module, options.save, kept.before + _trained(records))
        leave()
        fault = stop.error or not_finite(records)
        kept.ended(stop, fault)
    if fault is not None:
        raise kept.noted(fault)
    if groups.rank or stop.failed:
        return {}, kept.ended_by(stop)
    if stop.number:
        found["interrupted"] = True
    elif options.reference:
        found["reference"] = _reference(context, run, records, groups.device)
    return found, kept.ended_by(stop)


class _Kept:
    """The checkpoints of the run, if it has a folder.

    Attributes:
        before: the steps that changed the weights before those of this command.
    """

    def __init__(self, context: Context, compiled: Compiled, options: Options) -> None:
        self._context, self._compiled, self._options = context, compiled, options
        self._saving: Saving | None = None
        self._last: int | None = None
        self.before = 0
        self._folder: RunFolder | None = None

    def folder(self, run: Run, groups: Groups) -> AbstractContextManager[object]:
        """The folder of the run, held by rank 0 alone."""
        from shardlang.training.about import folder_of

        if self._options.out is None or groups.rank:
            return nullcontext()
        seed, steps = run.recipe.seed, run.recipe.steps
        self._folder = folder_of(self._compiled, self._options.out, seed, steps)
        if self._folder.was_killed:
            self._context.say(f"the run before in `{self._options.out}` was killed")
        return self._folder

    def ended(self, stop: Stop, fault: Exception | None) -> None:
        """Note in the folder how the run ended."""
        from shardlang.runtime.trainer.run_folder import FAILED, INTERRUPTED

        if self._folder is not None and fault is not None:
            self._folder.end(FAILED, str(fault))
        elif self._folder is not None and stop.number:
            self._folder.end(INTERRUPTED)
        elif self._folder is not None:
            self._folder.end()

    def begin(self, trainer: Trainer) -> None:
        """Go on from the last checkpoint, where that is asked. Collective."""
        from shardlang.training.saving import Saving

        if self._options.out is not None:
            out, timeout_s = self._options.out, self._options.timeout_s
            say = self._context.say
            self._saving = Saving(self._compiled, trainer, out, say, timeout_s)
            step = self._saving.begin(self._options.resume)
            self.before = trainer.learning_rate.steps
            if step >= self._options.steps:
                say(f"the run has taken {step} steps, and `--steps {self._options.steps}` ends it")
        self._time(trainer)
        if self._folder is not None:
            self._folder.begin(trainer.step_number)
            trainer.after_step.append(self._folder.after_step)
            self._watch(trainer)

    def _time(self, trainer: Trainer) -> None:
        """Note the actions of a pipeline in the step that is profiled, on every rank."""
        from shardlang.training.staged import StagedTrainee

        out, step = self._options.out, self._options.profile
        if out is None or step is None or not isinstance(trainer.trainee, StagedTrainee):
            return
        before, after = trainer.trainee.timed(out, step)
        trainer.before_step.append(before)
        trainer.after_step.insert(0, after)

    def _watch(self, trainer: Trainer) -> None:
        """Attach what else looks at the run, on rank 0."""
        from shardlang.runtime.trainer.seeing import Profile, TensorBoard

        options = self._options
        assert options.out is not None, "what looks at a run writes into its folder"
        if options.tensorboard:
            curves = TensorBoard(options.out / "tensorboard", trainer.step_number)
            trainer.after_step.append(curves.after_step)
        if options.profile is not None:
            trace = Profile(options.out / "profile", options.profile, [options.device])
            trainer.before_step.append(trace.before_step)
            trainer.after_step.insert(0, trace.after_step)

    def end(self, stop: Stop, records: list[Record], found: dict[str, object]) -> None:
        """Save the end of the run, unless it is not finite. Collective."""
        from shardlang.training.run import not_finite

        if self._saving is not None:
            stop.saving()
            self._last = self._saving.finish(save=not_finite(records) is None)
            found["out"], found["checkpoint"] = str(self._options.out), self._last

    def noted(self, fault: Exception) -> Exception:
        """A fault, with the place from which the run may go on."""
        from shardlang.runtime.errors import RunError
        from shardlang.training.saving import note_of

        if self._saving is None or not isinstance(fault, RunError):
            return fault
        notes = [*fault.notes, note_of(self._last)]
        return RunError(fault.code, fault.message, help=fault.help, notes=notes)

    def ended_by(self, stop: Stop) -> int:
        """The signal that ended the run early, or 0.

        A scheduler that has asked for the end finds all of the run in a checkpoint: that is well.
        """
        well = stop.number == signal.SIGTERM and self._last is not None
        return 0 if well else stop.number


def _check_before(
    context: Context, run: Run, module: ShardedModule, groups: Groups, options: Options
) -> None:
    """Say before the first step what would only be seen after the last."""
    from shardlang.runtime.save import check_target
    from shardlang.training.work import without_peak

    if options.save is not None and groups.rank == 0:
        check_target(options.save, module, _format(run))
    if run.compiled.program.loss is None:
        context.say("nothing is trained: no output is known to be the loss; the forward runs alone")
    for line in without_peak(run.compiled):
        context.say(line)


def _save(context: Context, run: Run, module: ShardedModule, folder: Path, steps: int) -> None:
    """Write the weights, the configuration and the tokenizer, and say so. Collective.

    Args:
        steps: that have changed the weights, those before a resume included.
    """
    from shardlang.runtime.save import save_or_rescue

    save_or_rescue(module, folder, _format(run))
    context.say(f"saved the weights after {counted(steps, 'step')} in `{folder}`")


def _trained(records: list[Record]) -> int:
    """How many steps have changed the weights."""
    return sum(1 for record in records if not record.not_finite)


def _format(run: Run) -> Format:
    """How the weights of a run are written."""
    from shardlang.training.hugging_face import directory_of
    from shardlang.training.tokens import TOKENS

    tokens = run.tokenizer.kind if run.tokenizer is not None else ""
    source = run.compiled.source
    metadata = {TOKENS: tokens} if tokens else {}
    return directory_of(source).format(source.deferred.module, metadata)


def _compile(context: Context, spec: Spec) -> Compiled:
    """Compile, with the findings of every stage as the command's own."""
    from shardlang.compiler.driver import CompileError, compile_spec
    from shardlang.compiler.stated import check_stated
    from shardlang.plan.full_gathers import full_gathers

    try:
        compiled = compile_spec(spec)
        check_stated(compiled)
    except CompileError as failure:
        _stop(context, failure)
    context.add([*compiled.diagnostics, *full_gathers(compiled)])
    context.stop_on_errors()
    return compiled


def _stop(context: Context, failure: CompileError) -> NoReturn:
    """End with the findings of a compilation, which every rank has and rank 0 prints."""
    from shardlang.runtime.reports import FOLDER

    context.add(failure.diagnostics)
    if not context.speaks and FOLDER in os.environ:
        click.echo(next(str(d) for d in failure.diagnostics if d.is_error), err=True)
    context.fail()


def _shown(context: Context, records: Iterator[Record], steps: int, stop: Stop) -> Iterator[Record]:
    """The records, shown as they come: a bar for a person, lines for a program."""
    from shardlang.runtime.progress import is_terminal, print_lines, show_bar

    if not context.speaks:
        return records
    if is_terminal() and not context.is_json:
        return show_bar(records, steps, "training")
    return print_lines(records, on_closed=lambda: _nobody_reads(stop))


def _nobody_reads(stop: Stop) -> None:
    """End as a program does whose output is closed, but save first where that was asked."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if not stop.saves:
        raise SystemExit(128 + signal.SIGPIPE)
    stop.ask(signal.SIGPIPE)


def _reference(
    context: Context, run: Run, records: list[Record], device: torch.device
) -> dict[str, object]:
    """Train the plain model on the run's device, and say how the losses compare.

    Where they differ by more than rounding does, that is a finding, and the command fails.
    """
    from shardlang.cli.common import diagnostic_of
    from shardlang.runtime.progress import is_terminal, show_bar
    from shardlang.training.reference import compare
    from shardlang.training.run import not_finite

    seen = is_terminal() and not context.is_json
    steps = run.recipe.steps
    plain = run.reference(
        lambda found: show_bar(found, steps, "reference") if seen else found, device
    )
    fault = not_finite(plain, "in the reference, ")
    if fault is not None:
        raise fault
    compared = compare(run.compiled, records, plain)
    if seen:
        _print_losses(compared.pairs)
    if compared.parted is not None:
        context.say(
            f"in step {compared.parted} the run or the reference alone skips its update, since a"
            " gradient overflows: the losses are compared up to there"
        )
    if (differs := compared.fault()) is not None:
        finding = diagnostic_of(differs, context.spec_path)
        assert finding is not None
        context.add([finding])
    return compared.document()


def _print_losses(pairs: Sequence[tuple[int, float, float]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("step", "sharded", "one process", "difference", title="loss")
    for step, mine, theirs in pairs:
        table.add_row(str(step), f"{mine:.7f}", f"{theirs:.7f}", f"{abs(mine - theirs):.1e}")
    Console().print(table)


def _sentence(found: dict[str, Any]) -> str:
    """The summary for a person."""
    loss = f"loss {found['first_loss']:.4f} to {found['loss']:.4f}, " if found["loss"] else ""
    speed = f"{found['tokens_per_s']:,.0f} tokens/s"
    waited = f", {found['exposed_s']:.3f} of {found['step_s']:.3f} s a step spent waiting"
    use = "" if found["mfu"] is None else f", mfu {found['mfu']:.1%}"
    steps, devices = counted(found["steps"], "step"), counted(found["devices"], "device")
    return f"{steps} on {devices}: {loss}{speed}{waited}{use}"


def _finish(context: Context, found: dict[str, object]) -> None:
    """The last line: the summary."""
    from shardlang.runtime.progress import is_terminal

    if context.is_json or not is_terminal():
        ok = {"ok": False} if "interrupted" in found else {}
        context.print_document({**ok, "summary": found})
    if not context.is_json:
        if is_terminal():
            click.echo(_sentence(found))
        sys.stdout.flush()
        context.finish()
    if any(finding.is_error for finding in context.findings):
        raise click.exceptions.Exit(1)
