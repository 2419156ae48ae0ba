"""Training with the masks noted: on the ranks of a process group, and on simulated devices."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from shardlang.api import Program
from shardlang.capture import materialize
from shardlang.compiler.driver import Compiled, compile_spec
from shardlang.ir.compat import FakeTensor
from shardlang.passes.step.write_step import write_step
from shardlang.rules import streams
from shardlang.runtime.groups import join
from shardlang.runtime.simulate_step import StepSimulator
from shardlang.spec import load_spec
from shardlang.training.data import stream_of
from shardlang.training.recipe import recipe_of
from shardlang.training.run import Run, sharded_module
from tests.runtime.prepared import prepare_step

SPEC = str(Path(__file__).with_name("gpt2_fast.shard"))
SEED, STEPS = 4, 4

Masks = list[tuple[int, Tensor]]
"""The number of the draw and its mask, in the order in which they are drawn."""


@functools.cache
def compiled() -> Compiled:
    """The spec of this test, compiled."""
    spec, findings = load_spec(SPEC)
    assert spec is not None, findings
    return compile_spec(spec)


def prepare() -> None:
    """Compile it, and its step."""
    prepare_step(Program(compiled()))


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
    program, loss = found.program, str(found.program.loss)
    trained = [leaf.name for leaf in program.leaves if leaf.trainable]
    sim = StepSimulator(write_step(program, trained, [loss]))
    layouts = {leaf.name: leaf.layout for leaf in program.leaves}
    values = materialize(found.source, SEED) | dict(found.captured.constants)
    local = {
        leaf.name: sim.place(values[leaf.name], leaf.layout)
        for leaf in program.leaves
        if leaf.kind != "input"
    }
    params = [shard for name in trained for shard in local[name]]
    optimizer = torch.optim.SGD(params, **dict(recipe_of(found, steps, SEED).rule.arguments))
    place = [result.name for result in program.results].index(loss)
    losses = []
    torch.manual_seed(SEED)
    with noted() as masks:
        for _, batch in zip(range(steps), stream_of(found, SEED), strict=False):
            inputs = {n: sim.place(x, layouts[n]) for n, x in batch.items() if n not in local}
            results, grads = sim.run(
                {**local, **inputs}, {loss: [torch.ones(())] * len(sim.coords)}
            )
            for param, grad in zip(params, (g for n in trained for g in grads[n]), strict=True):
                param.grad = grad
            optimizer.step()
            losses.append(results[place][0].item())
    return losses, masks
