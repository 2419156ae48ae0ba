"""From a compiled spec to a training run: the model on this device, its batches, its results."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from shardlang.capture import load_plain, materialize
from shardlang.capture.nest import tensors
from shardlang.compiler.driver import Compiled
from shardlang.compiler.in_stages import in_stages
from shardlang.compiler.variants import Programs
from shardlang.ir.compat import Backend
from shardlang.ir.leaf import LeafKind
from shardlang.ir.shards import shard_of
from shardlang.runtime.agree import Agreement
from shardlang.runtime.checks import check_same_spec
from shardlang.runtime.data import Batch
from shardlang.runtime.errors import RunError, concerning
from shardlang.runtime.groups import Groups
from shardlang.runtime.initial import InitialValues
from shardlang.runtime.module import ShardedModule, held
from shardlang.runtime.stop import Stop
from shardlang.runtime.trainer.plain import PlainTrainee
from shardlang.runtime.trainer.recipe import Recipe
from shardlang.runtime.trainer.records import Record
from shardlang.runtime.trainer.trainer import Trainer
from shardlang.runtime.trainer.typical import median
from shardlang.runtime.whole import held_shard
from shardlang.spec.flat import bare_text
from shardlang.training.data import shared_stream, stated_data, stream_of, tokenizer_for
from shardlang.training.evaluating import evaluating_of
from shardlang.training.recipe import recipe_of
from shardlang.training.step import trainee_of
from shardlang.training.tokens import Tokenizer


def sharded_module(
    compiled: Compiled, groups: Groups, seed: int = 0, backend: Backend | None = None
) -> ShardedModule:
    """The sharded model on this device, with its initial or stored weights. Collective.

    No rank ever holds more than one whole tensor beside its own shards. Where one rank cannot read
    or make them, all say why. Ranks with other specs (SH0602) or values (SH0611) are named.

    Args:
        backend: what compiles the regions of the step; None to run it op by op.
    """
    check_same_spec(bare_text(compiled.spec), groups)
    held_by = compiled if compiled.spec.pipeline is None else in_stages(compiled)
    layouts = {leaf.name: leaf.at_rest for leaf in held_by.program.leaves}

    initial = InitialValues()

    def mine(name: str, full: Tensor) -> Tensor:
        initial.note(name, full)
        if name not in layouts:
            return full[:0] if full.dim() else full
        return shard_of(full, layouts[name], groups.coord)

    shards = Agreement(groups).together(lambda: materialize(compiled.source, seed, mine))
    transient = compiled.captured.constants.keys()
    module = ShardedModule(Programs(compiled, seed), groups, shards, transient, backend)
    initial.check(groups)
    return module


def plain_trainee(
    compiled: Compiled, seed: int, device: torch.device | None = None
) -> PlainTrainee:
    """The ordinary model on one process, with the weights that the sharded one starts from."""
    name = compiled.program.loss
    names = compiled.captured.output.names

    def loss_of(module: nn.Module, batch: Batch) -> Tensor | None:
        result = compiled.source.call(module, batch)
        found = dict(zip(names, (tensor for _, tensor in tensors(result)), strict=True))
        return found[name] if name is not None else None

    plain = load_plain(compiled.source, seed)
    return PlainTrainee(plain, loss_of, device, has_loss=name is not None)


def run_of(compiled: Compiled, steps: int, seed: int, data: Path | None) -> Run:
    """The run that a spec and the command line ask for.

    Raises:
        RunError: SH0605, the model's tokenizer is missing or cannot be read.
    """
    stated = stated_data(compiled, data)
    with concerning("data"):
        tokenizer = None if stated is None else tokenizer_for(compiled, stated)
    return Run(compiled, recipe_of(compiled, steps, seed), data, tokenizer)


Begin = Callable[[Trainer], object]
Show = Callable[[Iterator[Record]], Iterator[Record]]


@dataclass(slots=True)
class Run:
    """A training run of a compiled spec on this device."""

    compiled: Compiled
    recipe: Recipe
    data: Path | None = None
    tokenizer: Tokenizer | None = None

    def sharded(
        self,
        module: ShardedModule,
        show: Show,
        stop: Stop | None = None,
        begin: Begin | None = None,
    ) -> list[Record]:
        """Train the sharded model, until `stop` says so. Collective.

        Args:
            begin: what is done with the trainer before its first step.
        """
        trainer = self.trainer(module, stop)
        if begin is not None:
            begin(trainer)
        return list(show(trainer.steps(max(0, self.recipe.steps - trainer.step_number))))

    def trainer(self, module: ShardedModule, stop: Stop | None = None) -> Trainer:
        """What trains the sharded model, until `stop` says so. Collective."""
        trainee = trainee_of(self.compiled, module, self.recipe.seed)
        around, evaluated = (iter, iter) if stop is None else (stop.batches, stop.evaluated)
        stream = shared_stream(self.compiled, trainee, self.recipe.seed, self.data)
        when = evaluating_of(self.compiled, self.recipe.seed, self.data, trainee)
        return Trainer(
            trainee,
            stream,
            self.recipe,
            evaluating=when,
            around=around,
            around_evaluation=evaluated,
        )

    def reference(self, show: Show, device: torch.device | None = None) -> list[Record]:
        """Train the ordinary model on this process alone.

        On the device of the run it draws what the run draws: other devices draw other numbers.
        """
        trainee = plain_trainee(self.compiled, self.recipe.seed, device)
        whole = stream_of(self.compiled, self.recipe.seed, self.data)
        alone = replace(self.recipe, work=None)
        when = evaluating_of(self.compiled, self.recipe.seed, self.data)
        trainer = Trainer(trainee, whole, alone, evaluating=when)
        return list(show(trainer.steps(self.recipe.steps)))


def summary(run: Run, module: ShardedModule, records: list[Record]) -> dict[str, object]:
    """What the last line of a run says."""
    mesh = held(module).groups.mesh
    stated = stated_data(run.compiled, run.data)
    losses = [r.loss for r in records if r.loss is not None and "loss" not in r.not_finite]
    return {
        "steps": len(records),
        "first_loss": losses[0] if losses else None,
        "loss": losses[-1] if losses else None,
        "step_s": median([record.step_s for record in records]),
        "tokens_per_s": median([record.tokens_per_s for record in records]),
        "exposed_s": median([record.exposed_s for record in records]),
        "mfu": median([record.mfu for record in records]),
        "peak_bytes": max((record.peak_bytes for record in records), default=None),
        "mesh": {axis.name: axis.size for axis in mesh.whole.axes},
        "devices": mesh.devices,
        "device": held(module).groups.device.type,
        "parameters": _count(module, whole=True),
        "local_parameters": _count(module, whole=False),
        "optimizer": run.recipe.rule.name,
        "seed": run.recipe.seed,
        "random": run.compiled.spec.random,
        "data": str(stated.path) if stated is not None else None,
        "tokens": run.tokenizer.kind if run.tokenizer is not None else None,
    }


def not_finite(records: list[Record], subject: str = "") -> RunError | None:
    """The error of a run that ended at a step that is not finite."""
    if not records or not records[-1].not_finite or records[-1].skipped:
        return None
    last = records[-1]
    words = {"loss": "the loss is", "grad_norm": "the norm of the gradients is"}
    said = " and ".join(f"{words[name]} {value}" for name, value in last.not_finite.items())
    return RunError(
        "SH0630",
        f"{subject}{said} in step {last.step}, which changed no parameter",
        help="lower the learning rate, clip the gradients, or look at the batch and the model",
    )


def _count(module: ShardedModule, whole: bool) -> int:
    found = [(leaf, x) for leaf, x in held(module).tensors() if leaf.kind is LeafKind.PARAM]
    if whole:
        return sum(torch.Size(leaf.layout.shape).numel() for leaf, _ in found)
    return sum(held_shard(x).numel() for _, x in found)
