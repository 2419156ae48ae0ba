"""Pipelines on gloo processes."""

from __future__ import annotations

from typing import Any

import torch
from staged import SPECS, STEPS, batch, program

from shardlang.api import Program
from shardlang.runtime.errors import RunError
from shardlang.runtime.trainer.evaluation import Evaluating, evaluate
from shardlang.runtime.whole import held_shard


def everything() -> dict[str, Any]:
    """Every schedule, and what else is done with a model in stages."""
    found: dict[str, Any] = {name: trained(program(name)) for name in SPECS if name != "plain"}
    found["refused"] = refused()
    return found


def trained(made: Program) -> dict[str, Any]:
    """A few steps, an evaluation in between, and what is there at the end."""
    module = made.load()
    optimizer = made.optimizer()
    torch.manual_seed(11)
    steps = [made.step(batch(step)) for step in range(STEPS - 1)]
    between = evaluate(made._loaded()._trainee, Evaluating(1, 1, lambda: [batch(20)])).loss
    steps.append(made.step(batch(STEPS - 1)))
    params = dict(module.named_parameters())
    return {
        "losses": [step.loss for step in steps],
        "norms": [step.grad_norm for step in steps],
        "evaluated": between,
        "params": {name: whole(p) for name, p in params.items()},
        "buffers": {name: whole(x) for name, x in module.named_buffers()},
        "states": {
            name: whole(optimizer.state[p]["exp_avg"])
            for name, p in params.items()
            if p.requires_grad
        },
        "held": {name for name, p in params.items() if held_shard(p).numel()},
        "draws": torch.rand(2),
    }


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
