"""Training with several microbatches in a step: every device cuts them out of the whole batch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from shardlang.capture import ModelSource
from shardlang.compiler.accumulate import accumulated, accumulated_step, least_rows
from shardlang.compiler.driver import Compiled, CompileError
from shardlang.compiler.variants import compiled_for
from shardlang.grammar.words import counted
from shardlang.ir.leaf import Leaf, LeafKind
from shardlang.ir.shards import shard_of
from shardlang.runtime.accumulate import Accumulating
from shardlang.runtime.checks import check_same_program
from shardlang.runtime.data import Batch, Reader
from shardlang.runtime.data.rows import MicrobatchReader, OwnRows
from shardlang.runtime.errors import RunError
from shardlang.runtime.held import Held
from shardlang.runtime.module import ShardedModule, held
from shardlang.runtime.sharding import Sharding
from shardlang.runtime.tensor import Sharded, own, sharded
from shardlang.runtime.trainer.trainees import ShardedTrainee
from shardlang.runtime.whole import held_shard
from shardlang.runtime.written import write_all


class Along:
    """The program along its microbatches, for inputs of some shapes."""

    def __init__(self, compiled: Compiled, source: ModelSource, held: Held, seed: int) -> None:
        """Load what does not depend on what is trained. Collective.

        Args:
            compiled: along an axis of microbatches.
            source: the model.

        Raises:
            RunError: SH0602, the ranks hold different programs.
        """
        self.compiled, self._groups = compiled, held.groups
        self._regions = held.backends.regions()
        self.program = compiled.program
        check_same_program(self.program, held.groups)
        self.constants = compiled.captured.constant_values(source.deferred, seed)
        self._steps: dict[frozenset[str], Accumulating] = {}

    def step(self, trained: frozenset[str]) -> Accumulating:
        """The step for what is trained."""
        if trained not in self._steps:
            step = accumulated_step(self.compiled, sorted(trained))
            self._steps[trained] = Accumulating(step, self._groups, self._regions)
        return self._steps[trained]


class AccumulatedTrainee(ShardedTrainee):
    """The sharded model, its batch cut into microbatches.

    A batch of other sizes than declared gets a program of its own.
    """

    def __init__(self, compiled: Compiled, module: ShardedModule, seed: int = 0) -> None:
        """Compile the step along its microbatches. Collective.

        Raises:
            CompileError: it cannot be computed so.
        """
        super().__init__(module)
        self._held, self._compiled, self._seed = held(module), compiled, seed
        self._declared = self._held.variants.compiler.declared
        self._first = self._compile(compiled)
        self._along = {self._declared: self._first}

    def _compile(self, compiled: Compiled) -> Along:
        """The program along the microbatches. Collective."""
        return Along(accumulated(compiled), compiled.source, self._held, self._seed)

    def reader(self) -> Reader:
        """The rows of each microbatch that this device holds."""
        program, coord = self._first.program, self._held.groups.coord
        axis = program.mesh.axes[0]
        layouts = {x.name: x.layout for x in program.leaves if x.kind is LeafKind.INPUT}
        coords = [{**coord, axis.name: i} for i in range(axis.size)]
        return MicrobatchReader(layouts, coords, self._held.groups)

    def check(self, batch: Batch) -> None:
        """Refuse a batch that has fewer rows than there are microbatches on all devices.

        Raises:
            RunError: SH0605.
        """
        spec = self._compiled.spec
        first = batch.get(self._declared.inputs[0].name) if self._declared.inputs else None
        if isinstance(batch, OwnRows) or not isinstance(first, Tensor) or not first.dim():
            return
        least = least_rows(spec)
        if len(first) < least:
            raise RunError(
                "SH0605",
                f"a batch of {counted(len(first), 'row')} is too small for a step",
                help=f"give every batch {least} rows or more, so that each device has one in every"
                " microbatch, or leave such a batch out",
            )

    def prepare(self, batch: Batch) -> Batch:
        """The whole batch, which the ranks compare, unless each has read its own rows alone."""
        if not isinstance(batch, OwnRows):
            super().prepare(batch)
        return batch

    def loss(self, batch: Batch) -> Tensor | None:
        """The loss of a whole batch as a step has it, of the forwards alone. Collective.

        One that lies on the devices, or has too few rows for a step, is one microbatch.
        """
        given = [batch.get(one.name) for one in self._declared.inputs]
        on_devices = any(isinstance(x, Sharded) for x in given)
        first = next((x for x in given if isinstance(x, Tensor) and x.dim()), None)
        if on_devices or first is None or len(first) < least_rows(self._compiled.spec):
            return super().loss(batch)
        prepared = self.prepare(batch)
        along = self._for(prepared)
        step = along.step(self._trained())
        return step.loss(self._leaves_of(along, step, prepared))

    def backward(self, batch: Batch, scale: float = 1.0) -> Tensor | None:
        """The loss of all microbatches; their gradients are added to those of the parameters.

        Raises:
            RunError: SH0605, a batch of these sizes cannot be cut into microbatches.
        """
        along = self._for(batch)
        step = along.step(self._trained())
        made = step(self._leaves_of(along, step, batch), scale)
        lies = {leaf.name: leaf for leaf in along.program.leaves}
        for name, gradient in made.gradients.items():
            self._give(lies[name], gradient)
        self._write(made.written)
        return made.loss

    def _trained(self) -> frozenset[str]:
        """The parameters that are trained now, by name."""
        params = [(x, p) for x, p in self._held.tensors() if x.kind is LeafKind.PARAM]
        return frozenset(leaf.name for leaf, param in params if param.requires_grad)

    def _for(self, batch: Batch) -> Along:
        """The program for the shapes of a batch, in the modes of the modules."""
        inputs = self._declared.inputs
        shapes = tuple(tuple(torch.as_tensor(batch[one.name]).shape) for one in inputs)
        pairs = zip(inputs, shapes, strict=True)
        given = tuple(replace(one, shape=shape) for one, shape in pairs)
        call = replace(self._declared, inputs=given, evaluated=self._variants.evaluated)
        if call not in self._along:
            try:
                self._along[call] = self._compile(compiled_for(self._compiled, call))
            except CompileError as error:
                raise RunError(
                    "SH0605",
                    f"a batch of {shapes[0][0]} rows cannot be cut into microbatches: {error}",
                    help="leave such a batch out, or accumulate fewer microbatches",
                ) from error
        return self._along[call]

    def _leaves_of(self, along: Along, step: Accumulating, batch: Batch) -> list[dict[str, Tensor]]:
        """This device's shards of all leaves, for every microbatch."""
        leaves = along.program.leaves
        return [{x.name: self._leaf(x, batch, at, along) for x in leaves} for at in step.coords]

    def _leaf(self, leaf: Leaf, batch: Batch, at: Mapping[str, int], along: Along) -> Tensor:
        """This device's shard of a leaf for one microbatch."""
        if leaf.kind is LeafKind.INPUT:
            whole = batch[leaf.name]
            assert isinstance(whole, Tensor)
            return shard_of(whole, leaf.layout, at).to(self._held.groups.device)
        if leaf.name in self._held.slots:
            table, key = self._held.slots[leaf.name]
            return held_shard(table[key]).detach()
        whole = along.constants[leaf.name]
        return shard_of(whole, leaf.layout, at).to(self._held.groups.device)

    @torch.no_grad()
    def _give(self, leaf: Leaf, gradient: Tensor) -> None:
        table, key = self._held.slots[leaf.name]
        groups = self._held.groups
        mine = own(gradient)
        lies = Sharding(leaf.layout.unlabelled(), groups)
        found = sharded(mine, lies) if groups.mesh.devices > 1 else mine
        known = table[key].grad
        table[key].grad = found if known is None else known + found

    @torch.no_grad()
    def _write(self, written: Mapping[str, Tensor]) -> None:
        places = {name: self._held.slots[name] for name in written}
        write_all((held_shard(table[key]), written[n]) for n, (table, key) in places.items())
