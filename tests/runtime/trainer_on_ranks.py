"""The trainer on two gloo processes: what it is resumed by, and what each statement does."""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import Any

import torch
import trained

from shardlang.api import Program
from shardlang.runtime.trainer.evaluation import Evaluating
from shardlang.runtime.trainer.records import Record
from shardlang.runtime.trainer.trainer import Trainer

STORED = 'store "**" over dp'
RESUMED = {
    "adam": ("mesh { dp = 2 }", STORED, torch.float64),
    "fast": ("mesh { dp = 2 }", f"{STORED} random fast", torch.float64),
    "masters": (
        "mesh { dp = 2 }",
        'store optimizer "**" over dp accumulate 2 precision { master = f32 reduce = f32 }',
        torch.bfloat16,
    ),
}
"""Mesh, statements and type of the runs that are saved and resumed."""

LAST, BREAK = 5, 2


def everything() -> dict[str, Any]:
    """All results of this rank."""
    folder = Path(os.environ["SCRATCH"])
    found = {"resumed": {name: resumed(name, folder / name) for name in RESUMED}}
    return {**found, "stated": {name: stated(name) for name in STATED}}


RECIPE = """
optimizer adamw(lr = 0.02, weight_decay = 0.3, clip = 0.5)
group "**.bias", "norm.*" (weight_decay = 0)
group "head.weight" (lr = 0.05)
learning_rate warmup(steps = 3) cosine(steps = 4, to = 0.002)
evaluate every 2 batches 3
"""
STATED = {
    "parts": 'mesh { dp = 2 } store gradients "**" over dp',
    "microbatches": 'mesh { dp = 2 } store "**" over dp accumulate 2',
}
TAKEN = 8


def stated(name: str) -> dict[str, Any]:
    """A run by every statement of a recipe, and the first steps of it in a loop of one's own."""
    program = trained.program(STATED[name] + RECIPE)
    module = program.load()
    when = Evaluating(2, 3, lambda: trained.batches(seed=5))
    trainer = program.trainer(trained.batches(), evaluating=when)
    records = list(trainer.steps(TAKEN))
    found = {
        "losses": [r.loss for r in records],
        "rates": [r.lr for r in records],
        "exposed": [(r.exposed_s, r.step_s) for r in records],
        "evaluated": [r.eval_loss for r in records],
        "params": {n: p.full_tensor().detach() for n, p in module.named_parameters()},
        "calls": float(module.get_buffer("calls")),
    }
    other = trained.program(STATED[name] + RECIPE)
    other.load()
    first = other.optimizer().param_groups[0]["lr"]
    rates, losses = [], []
    for batch in itertools.islice(trained.batches(), 4):
        rates.append(other.learning_rate().rate)
        losses.append(other.step(batch).loss)
    return {**found, "first rate": first, "by hand": (rates, losses)}


def made(name: str) -> Program:
    """The program of a run that is resumed, with dropout."""
    mesh, stated, dtype = RESUMED[name]
    text = f"{mesh} {stated} optimizer adamw(lr = 0.02, clip = 0.5)"
    return trained.program(text, 0.2, dtype)


def resumed(name: str, folder: Path) -> dict[str, Any]:
    """A run without a break, and one that is saved, spoilt and resumed by another program."""
    program = made(name)
    program.load()
    trainer = program.trainer(trained.batches(), seed=2)
    records = list(trainer.steps(BREAK))
    with program.checkpoints(folder) as checkpoints:
        checkpoints.save(trainer.step_number, trainer.state())
    noise = set()
    for _ in range(2):
        checkpoints.load(trainer.state())
        noise.add(trained.noise())
    checkpoints.load(trainer.state())
    records += list(trainer.steps(LAST - BREAK))
    whole = _whole(trainer)
    other = made(name)
    other.load(seed=7)
    again = other.trainer(trained.batches(), seed=9)
    other.checkpoints(folder).load(again.state())
    later = list(again.steps(LAST - BREAK))
    return {
        "losses": [_numbers(r) for r in records],
        "later": [_numbers(r) for r in later],
        "equal": _equal(whole, _whole(again)),
        "noise": len(noise),
        "steps": (trainer.step_number, again.step_number),
    }


def _numbers(record: Record) -> tuple[int, float | None, float | None]:
    return record.step, record.loss, record.grad_norm


def _whole(trainer: Trainer) -> dict[str, torch.Tensor]:
    """Everything that is saved, as whole tensors."""
    module, states = trainer.trainee.module, trainer.optimizer.shown.state
    found = {f"{n}.{k}": x for n, p in module.named_parameters() for k, x in states[p].items()}
    found |= module.state_dict()
    return {n: x.full_tensor() if hasattr(x, "full_tensor") else x for n, x in found.items()}


def _equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
