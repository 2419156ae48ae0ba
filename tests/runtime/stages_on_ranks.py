"""Pipelines on gloo processes."""

from __future__ import annotations

import gc
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from counts_on_ranks import Boundary
from staged import STEPS, batch, program
from torch import Tensor

from shardlang.api import Program
from shardlang.cost.composition import over_time
from shardlang.cost.meter import Meter
from shardlang.cost.pipeline.composition import kinds_on_rank
from shardlang.cost.pipeline.memory import device_memory
from shardlang.runtime.data import Batch
from shardlang.runtime.errors import RunError
from shardlang.runtime.stages.pipeline import Pipeline
from shardlang.runtime.trainer.evaluation import Evaluating, evaluate
from shardlang.runtime.trainer.random_states import RandomStates
from shardlang.runtime.transport import Arriving
from shardlang.runtime.whole import held_shard
from shardlang.training.staged import StagedTrainee
from tests.cost.measured import arriving
from tests.runtime.prepared import prepare_step


def prepare() -> None:
    """Compile every schedule of this job."""
    for name in names():
        prepare_step(program(name))


def everything() -> dict[str, Any]:
    """Every schedule of this job, and with `1f1b` what else is done with a model in stages."""
    found: dict[str, Any] = {name: trained(program(name)) for name in names()}
    if "1f1b" in found:
        found["refused"], found["moved"] = refused(), moved()
    return found


def names() -> list[str]:
    """The specs of this job."""
    return os.environ["NAMES"].split("; ")


def trained(made: Program) -> dict[str, Any]:
    """A few steps, an evaluation in between, and what is there at the end."""
    module = made.load()
    optimizer = made.optimizer()
    torch.manual_seed(11)
    steps = [made.step(batch(step)) for step in range(STEPS - 1)]
    between = evaluate(made._loaded()._trainee, Evaluating(1, 1, lambda: [batch(20)])).loss
    forward = forward_alone(made)
    with Boundary() as boundary:
        steps.append(made.step(batch(STEPS - 1)))
    params = dict(module.named_parameters())
    return {
        "losses": [step.loss for step in steps],
        "norms": [step.grad_norm for step in steps],
        "evaluated": between,
        "forward": forward,
        "params": {name: whole(p) for name, p in params.items()},
        "buffers": {name: whole(x) for name, x in module.named_buffers()},
        "states": {
            name: whole(optimizer.state[p]["exp_avg"])
            for name, p in params.items()
            if p.requires_grad
        },
        "held": {name for name, p in params.items() if held_shard(p).numel()},
        "draws": torch.rand(2),
        "sent": boundary.sent,
        "peaks": peaks(made),
    }


@torch.no_grad()
def forward_alone(made: Program) -> float:
    """The loss of a batch with the masks of training; the generators go on, buffers do not."""
    trainee = made._loaded()._trainee
    buffers = [held_shard(x) for x in trainee.module.buffers()]
    kept = [x.clone() for x in buffers]
    found = trainee.loss(trainee.prepare(batch(21)))
    for x, old in zip(buffers, kept, strict=True):
        x.copy_(old)
    assert found is not None
    return float(found)


def whole(x: torch.Tensor) -> torch.Tensor:
    """The whole tensor. Collective."""
    full = getattr(x, "full_tensor", None)
    return (x if full is None else full()).detach().clone()


def refused() -> str:
    """The code with which a call of the module is refused."""
    module = program("1f1b").load()
    try:
        module(**module.shard_inputs(**batch(0)))
    except RunError as error:
        return error.code
    return ""


MOVES = ("1f1b", "zbv, tp", "v_half, states")
"""Other depths and meshes, on each of which one step is taken."""


def moved() -> list[float]:
    """The losses of steps that go on from a checkpoint of another depth each time."""
    folder, losses = Path(os.environ["SCRATCH"]) / "moved", list[float]()
    for number, name in enumerate(MOVES):
        made = program(name)
        state = {"model": made.load(), "optimizer": made.optimizer(), "random": RandomStates()}
        with made.checkpoints(folder) as checkpoints:
            if number:
                checkpoints.load(state)
            else:
                torch.manual_seed(11)
            losses.append(made.step(batch(number)).loss)
            checkpoints.save(number + 1, state)
    return losses


Peaks = tuple[int, int]
"""The most bytes that are alive in a step, and behind its last action."""


def peaks(made: Program) -> tuple[Peaks, Peaks]:
    """The peaks here: planned, and measured."""
    trainee: Any = made._loaded()._trainee
    if not isinstance(trainee, StagedTrainee):
        return (0, 0), (0, 0)
    given = trainee.prepare(batch(0))
    pipeline = trainee._staged(given).pipeline(trainee._trained())
    plan, rank = pipeline.plan, int(os.environ["RANK"])
    planned = device_memory(plan.step, plan.schedule, plan.order, plan.axis, rank)
    held = [sum(one.values()) for one in over_time(planned, kinds_on_rank(planned))]
    behind = max(held[planned.begins[-1][0] :])
    tries = [_measured(trainee, pipeline, given) for _ in range(2)]
    return (planned.peak, behind), (min(x for x, _ in tries), min(x for _, x in tries))


def _measured(trainee: StagedTrainee, pipeline: Pipeline, given: Batch) -> Peaks:
    """Of one step; threads of gloo may hold tensors longer than we wait, so the least counts."""
    along, count = trainee._staged(given), pipeline.plan.step.whole.axis.size
    leaves = [_own(trainee._leaves(pipeline, along, given, i), given) for i in range(count)]
    gc.collect()
    end, before = Pipeline._end, list[int]()
    with Meter() as meter, patch.object(Arriving, "__init__", arriving), torch.no_grad():

        def last(one: Pipeline, running: Any) -> Any:
            before.append(meter.peak)
            meter.peak = meter.live
            return end(one, running)

        meter.count([x for one in leaves for x in one.values()])
        with patch.object(Pipeline, "_end", last):
            pipeline(leaves.__getitem__)
    return max(*before, meter.peak), meter.peak


def _own(leaves: Mapping[str, Tensor], given: Batch) -> dict[str, Tensor]:
    """Inputs in memory of their own, apart from the whole batch."""
    return {name: x.clone() if name in given else x for name, x in leaves.items()}
