"""Training with the masks noted: on the ranks of a process group, and on simulated devices."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from shardlang.capture import materialize
from shardlang.compiler.driver import Compiled, compile_spec
from shardlang.ir.compat import FakeTensor
from shardlang.rules import streams
from shardlang.runtime.groups import join
from shardlang.runtime.simulate import Simulator
from shardlang.spec import load_spec
from shardlang.training.run import Run, batches, recipe_of, sharded_module

SPEC = str(Path(__file__).with_name("gpt2_fast.shard"))
SEED, STEPS = 4, 4

Masks = list[tuple[int, Tensor]]
"""The number of the draw and its mask, in the order in which they are drawn."""


def compiled() -> Compiled:
    """The spec of this test, compiled."""
    spec, findings = load_spec(SPEC)
    assert spec is not None, findings
    return compile_spec(spec)


@contextmanager
def noted() -> Iterator[Masks]:
    """Note every mask that is drawn, but those of a trace."""
    found: Masks = []
    draw: Any = streams._kept

    def note(key: Tensor, number: int, *args: Any, **kwargs: Any) -> Tensor:
        mask: Tensor = draw(key, number, *args, **kwargs)
        if not isinstance(mask, FakeTensor):
            found.append((number, mask.clone()))
        return mask

    with mock.patch.object(streams, "_kept", note):
        yield found


def on_ranks() -> tuple[list[float | None], Masks]:
    """The losses of a run, and the masks of this rank."""
    found = compiled()
    module = sharded_module(found, join(found.program.mesh, timeout_s=30), SEED)
    with noted() as masks:
        records = Run(found, recipe_of(found, STEPS, SEED)).sharded(module, lambda each: each)
    return [record.loss for record in records], masks


def simulated(found: Compiled, steps: int = STEPS) -> tuple[list[float], Masks]:
    """The losses of the same run on simulated devices, and the masks of all of them in turn."""
    sim = Simulator(found.program)
    values = materialize(found.source, SEED) | dict(found.captured.constants)
    local = {
        leaf.name: sim.place(leaf.name, values[leaf.name])
        for leaf in found.program.leaves
        if leaf.kind != "input"
    }
    params = [
        shard.requires_grad_()
        for leaf in found.program.leaves
        if leaf.trainable
        for shard in local[leaf.name]
    ]
    optimizer = torch.optim.SGD(params, **dict(recipe_of(found, steps, SEED).arguments))
    inputs = [leaf.name for leaf in found.program.leaves if leaf.kind == "input"]
    results = [result.name for result in found.program.results]
    data = batches(found, SEED)
    losses = []
    torch.manual_seed(SEED)
    with noted() as masks:
        for _, batch in zip(range(steps), data, strict=False):
            placed = {name: sim.place(name, batch[name]) for name in inputs}
            loss = sim.run({**local, **placed})[results.index(str(found.program.loss))]
            torch.autograd.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss[0].item())
    return losses, masks
