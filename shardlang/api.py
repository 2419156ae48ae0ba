"""The Python interface: compile a spec, then prove, plan, draw or load the program."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from shardlang.compiler.driver import (
    Compiled,
    CompileError,
    compile_spec,
    inputs_from_examples,
    module_source,
)
from shardlang.compiler.stated import check_stated
from shardlang.grammar.diagnostics import Diagnostic
from shardlang.ir.program import LocalProgram
from shardlang.plan.full_gathers import full_gathers
from shardlang.spec import Spec, load_spec

if TYPE_CHECKING:
    from shardlang.proof.report import Report
    from shardlang.runtime.checkpoint.checkpoints import Checkpoints
    from shardlang.runtime.module import ShardedModule
    from shardlang.runtime.optim import ShardedOptimizer
    from shardlang.runtime.trainer.evaluation import Evaluating
    from shardlang.runtime.trainer.learning_rate import LearningRate
    from shardlang.runtime.trainer.trainer import Trainer
    from shardlang.training.step import StepResult, Training


@torch.inference_mode(False)
def compile(
    spec: str | Path | Spec,
    *,
    model: nn.Module | Callable[[], nn.Module] | None = None,
    example_inputs: Mapping[str, Tensor] | None = None,
    sets: Mapping[str, str] | None = None,
) -> Program:
    """Compile a spec.

    Args:
        spec: a `.shard` file, or a resolved spec.
        model: the model, or a function that builds it, instead of the one the spec names. A model
            that is handed in is not changed; its own weights are the program's initial ones.
        example_inputs: tensors by input name, whose shapes and dtypes stand for those that the
            spec declares.
        sets: values for the spec's `let`s, as `--set` gives them.

    Raises:
        CompileError: the spec or the model has errors; `diagnostics` lists them all.
        TypeError: `example_inputs` are no tensors by name.
    """
    if example_inputs is not None and not _are_tensors(example_inputs):
        raise TypeError(f"`example_inputs` is {example_inputs!r}: give a dict of whole tensors")
    resolved = spec if isinstance(spec, Spec) else _load(Path(spec), sets or {}, model is not None)
    source = module_source(model) if model is not None else None
    inputs = inputs_from_examples(example_inputs) if example_inputs is not None else None
    compiled = compile_spec(resolved, source, inputs=inputs)
    check_stated(compiled)
    compiled.diagnostics += full_gathers(compiled)
    return Program(compiled)


def _load(path: Path, sets: Mapping[str, str], has_model: bool) -> Spec:
    spec, findings = load_spec(path, sets, need_model=not has_model)
    if spec is None:
        raise CompileError(findings)
    return spec


def _are_tensors(given: object) -> bool:
    values = given.values() if isinstance(given, Mapping) else [None]
    return all(isinstance(value, Tensor) for value in values)


def _check_seed(seed: object) -> None:
    """Raise `TypeError` for a seed that is no whole number."""
    if not isinstance(seed, int) or isinstance(seed, bool):
        raise TypeError(f"`seed` is {seed!r}: give a whole number, the same on every rank")


class Program:
    """A compiled spec: one program for every device of the mesh."""

    def __init__(self, compiled: Compiled) -> None:
        self.compiled = compiled
        self._training: Training | None = None

    def __repr__(self) -> str:
        from shardlang.plan import plan_of
        from shardlang.plan.render import summary

        mesh = ", ".join(f"{axis.name}={axis.size}" for axis in self.spec.mesh.whole.axes)
        return f"<Program of {self.spec.path.name} on {mesh}; {summary(plan_of(self.compiled))}>"

    def _repr_html_(self) -> str:
        """The plan and the picture, for a notebook."""
        from shardlang.graph.show import html_of

        return html_of(self.compiled)

    def _repr_svg_(self) -> str | None:
        """The picture; None where Graphviz is not installed."""
        from shardlang.graph.show import drawn

        return drawn(self.graph())

    @property
    def spec(self) -> Spec:
        """The resolved spec."""
        return self.compiled.spec

    @property
    def local(self) -> LocalProgram:
        """The program that every device runs, with its layouts."""
        return self.compiled.program

    @property
    def diagnostics(self) -> list[Diagnostic]:
        """Warnings and notes of the compilation."""
        return self.compiled.diagnostics

    @torch.inference_mode(False)
    def load(
        self, device: str | torch.device = "cpu", seed: int = 0, *, compile: bool = False
    ) -> ShardedModule:
        """This rank's shards of the model: an ordinary module with local parameters. Collective.

        Under torchrun, or any launcher that sets `RANK` and `WORLD_SIZE`, every rank calls this.
        `device` is `cpu` (gloo) or `cuda` (NCCL). With `compile`, inductor compiles what lies
        between two collectives, at the first step.

        Raises:
            RunError: the mesh has another number of devices, or the ranks' programs differ.
            TypeError: `compile` is neither true nor false, or `seed` no whole number.
        """
        _check_seed(seed)
        if not isinstance(compile, bool):
            raise TypeError(
                f"`compile` is {compile!r}: write `compile=True` for inductor; another backend"
                " compiles the calls of `torch.compile(program.load(), backend=...)`"
            )
        from shardlang.ir.compat import backend_named
        from shardlang.runtime.backends import INDUCTOR
        from shardlang.runtime.groups import join
        from shardlang.training.run import sharded_module
        from shardlang.training.step import Training

        kind = torch.device(device).type
        groups = join(self.compiled.program.mesh, kind)
        backend = backend_named(INDUCTOR) if compile else None
        module = sharded_module(self.compiled, groups, seed, backend)
        self._training = Training(self.compiled, module)
        return module

    def optimizer(self) -> ShardedOptimizer:
        """The spec's optimizer (AdamW with lr 1e-3 if it states none), for the module loaded last.

        Its states lie as the spec stores them. `step` clips the gradients where the spec says so.
        Collective.

        Raises:
            RunError: SH0606, nothing is loaded, or the optimizer cannot be made.
        """
        return self._loaded().optimizer

    def step(self, batch: Mapping[str, Tensor]) -> StepResult:
        """Train the module loaded last on one whole batch: forward, backward, update. Collective.

        Every rank gives the same whole batch. Where the loss, or the norm of the gradients, is not
        finite, no parameter changes.

        Raises:
            RunError: SH0606, nothing is loaded; SH0631, the program has no loss to train by;
                SH0644, it is called under `torch.compile`; else as for a call of the module.
        """
        return self._loaded().step(batch)

    def learning_rate(self) -> LearningRate:
        """The spec's schedule on `optimizer()`. Collective.

        A step of `step` or of a trainer sets the rate of the next one. A loop of one's own that
        calls `optimizer().step()` calls `learning_rate().step()` after it.

        Raises:
            RunError: SH0606, nothing is loaded, or the optimizer cannot be made.
        """
        return self._loaded().learning_rate

    def trainer(
        self,
        batches: Iterable[Mapping[str, Tensor]] | None = None,
        seed: int = 0,
        evaluating: Evaluating | None = None,
    ) -> Trainer:
        """The training loop of `shardlang run`, for the module loaded last. Collective.

        `for record in trainer.steps(100)` takes steps by the spec's optimizer;
        `trainer.state()` is what the run is saved and resumed by.

        Args:
            batches: whole ones, the same on every rank; None for those that `run` takes: from the
                spec's data, of which each device reads its own rows, or else the model file's own,
                or random ones.
            seed: of torch's generators, from now on, and of the batches where none are given.
            evaluating: when to evaluate, and on what; None for what the spec's `evaluate` says.

        Raises:
            RunError: SH0606, nothing is loaded, or the optimizer cannot be made.
            TypeError: `batches` cannot be iterated over, `seed` is no whole number, or `evaluating`
                no `Evaluating`.
        """
        from shardlang.runtime.trainer.evaluation import Evaluating

        _check_seed(seed)
        if evaluating is not None and not isinstance(evaluating, Evaluating):
            raise TypeError(
                f"`evaluating` is {evaluating!r}: give an `Evaluating`, or state `evaluate` in the"
                " spec"
            )
        if batches is not None and not isinstance(batches, Iterable):
            raise TypeError(f"`batches` is {batches!r}: give an iterable of dicts of whole tensors")
        return self._loaded().trainer(batches, seed, evaluating)

    def checkpoints(
        self,
        folder: str | Path,
        *,
        keep: int | None = None,
        keep_every: int | None = None,
    ) -> Checkpoints:
        """The checkpoints of a loop of one's own, in one folder. Collective.

        Call it after `load`. Their manifests hold the spec and the program's fingerprint.

        Args:
            folder: on a disk that all nodes share, or a URL that `fsspec` knows.
            keep: how many of the last ones stay; None for all.
            keep_every: those whose step it divides stay too.

        Raises:
            RunError: SH0663, there is no such place, or less than one is kept.
        """
        from shardlang.runtime.checkpoint.checkpoints import Checkpoints
        from shardlang.training.about import about_of

        about = about_of(self.compiled)
        return Checkpoints(folder, keep=keep, keep_every=keep_every, about=about)

    def export(self, module: ShardedModule, folder: str | Path) -> None:
        """Write the weights of a loaded module as a directory that `from_pretrained` loads.

        Rank 0 writes, one whole tensor at a time, with the configurations and the tokenizer's files
        of the directory that the model came from. Collective.

        Raises:
            RunError: SH0609, it is the folder that the model came from; or, on rank 0 alone, it
                cannot be written, or belongs to another model.
            TypeError: `module` is none that `load` gives.
        """
        from shardlang.runtime.module import ShardedModule
        from shardlang.runtime.save import save
        from shardlang.training.hugging_face import directory_of

        if not isinstance(module, ShardedModule):
            raise TypeError(f"`module` is {module!r}: give the module that `program.load()` gave")
        source = self.compiled.source
        directory = directory_of(source)
        directory.check_apart(Path(folder))
        save(module, Path(folder), directory.format(source.deferred.module))

    def _loaded(self) -> Training:
        from shardlang.runtime.errors import RunError

        if self._training is None:
            raise RunError(
                "SH0606",
                "nothing is loaded that could be trained",
                help="call `module = program.load()` first, on every rank",
            )
        return self._training

    @torch.inference_mode(False)
    def verify(self, seed: int = 0) -> Report:
        """Prove in float64, on simulated devices, that the program equals the model.

        Raises:
            CompileError: nothing can be proven: the model fails on the proof's inputs, say.
            TypeError: `seed` is no whole number.
        """
        _check_seed(seed)
        from shardlang.proof.prove import verify_compiled

        return verify_compiled(self.compiled, seed=seed)

    def plan(self) -> dict[str, object]:
        """Layouts, collectives, bytes and memory, as the `plan --json` document has them."""
        from shardlang.plan import plan_document, plan_of

        return plan_document(plan_of(self.compiled))

    def graph(self, *, factored: bool = True) -> str:
        """The rewritten graph as DOT."""
        from shardlang.graph import dot_of

        return dot_of(self.compiled, factored=factored)

    def code(self, stage: int | None = None) -> str:
        """The step of one device as readable Python: forward, backward and update.

        Args:
            stage: of a pipeline, whose stages have texts of their own.

        Raises:
            CompileError: SH0108, a pipeline without a stage, or a stage that there is not.
            TypeError: `stage` is no number.
        """
        if stage is not None and not isinstance(stage, int):
            raise TypeError(f"`stage` is {stage!r}: give the number of a stage, from 0")
        from shardlang.graph.code import code_of

        return code_of(self.compiled, stage)
