"""Training with several microbatches in a step: every device cuts them out of the whole batch."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from shardlang.compiler.accumulate import accumulated, accumulated_step
from shardlang.compiler.driver import Compiled
from shardlang.ir.leaf import Leaf, LeafKind
from shardlang.ir.shards import shard_of
from shardlang.runtime.accumulate import Accumulating
from shardlang.runtime.checks import check_same_program
from shardlang.runtime.data import Batch
from shardlang.runtime.errors import RunError
from shardlang.runtime.module import ShardedModule, held
from shardlang.runtime.sharding import Sharding
from shardlang.runtime.tensor import own, sharded
from shardlang.runtime.train import ShardedTrainee
from shardlang.runtime.whole import held_shard


class AccumulatedTrainee(ShardedTrainee):
    """The sharded model, its batch cut into microbatches."""

    def __init__(self, compiled: Compiled, module: ShardedModule, seed: int = 0) -> None:
        """Compile the step along its microbatches. Collective.

        Raises:
            CompileError: it cannot be computed so.
        """
        super().__init__(module)
        self._held = held(module)
        self._compiled = accumulated(compiled)
        self.program = self._compiled.program
        check_same_program(self.program, self._held.groups)
        constants = self._compiled.captured.constant_values(compiled.source.deferred, seed)
        self._constants = constants
        self._steps: dict[frozenset[str], Accumulating] = {}

    def prepare(self, batch: Batch) -> Batch:
        """The whole batch, which the ranks compare; it has the declared sizes.

        Raises:
            RunError: SH0605, it has others.
        """
        super().prepare(batch)
        for leaf in self.program.leaves:
            given = batch.get(leaf.name) if leaf.kind is LeafKind.INPUT else None
            if isinstance(given, Tensor) and tuple(given.shape) != leaf.layout.shape:
                raise RunError(
                    "SH0605",
                    f"input `{leaf.name}` is {list(given.shape)}, and a batch that is cut into"
                    f" microbatches is {list(leaf.layout.shape)}, as declared",
                    help="leave such a batch out, or leave `accumulate` out of the spec",
                )
        return batch

    def backward(self, batch: Batch) -> Tensor | None:
        """The loss of all microbatches; their gradients are added to those of the parameters."""
        step = self._step()
        made = step([self._leaves(batch, at) for at in step.coords])
        lies = {leaf.name: leaf for leaf in self.program.leaves}
        for name, gradient in made.gradients.items():
            self._give(lies[name], gradient)
        self._write(made.written)
        return made.loss

    def _step(self) -> Accumulating:
        """The step for what is trained now."""
        params = {leaf.name: p for leaf, p in self._held.tensors() if leaf.kind is LeafKind.PARAM}
        trained = frozenset(name for name, p in params.items() if p.requires_grad)
        if trained not in self._steps:
            step = accumulated_step(self._compiled, sorted(trained))
            self._steps[trained] = Accumulating(step, self._held.groups)
        return self._steps[trained]

    def _leaves(self, batch: Batch, at: Mapping[str, int]) -> dict[str, Tensor]:
        """This device's shards of all leaves for one microbatch."""
        return {leaf.name: self._leaf(leaf, batch, at) for leaf in self.program.leaves}

    def _leaf(self, leaf: Leaf, batch: Batch, at: Mapping[str, int]) -> Tensor:
        if leaf.kind is LeafKind.INPUT:
            whole = batch[leaf.name]
            assert isinstance(whole, Tensor)
            return shard_of(whole, leaf.layout, at).to(self._held.groups.device)
        if leaf.name in self._held.slots:
            table, key = self._held.slots[leaf.name]
            return held_shard(table[key]).detach()
        whole = self._constants[leaf.name]
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
        for name, value in written.items():
            table, key = self._held.slots[name]
            held_shard(table[key]).copy_(value)
