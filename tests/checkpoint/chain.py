"""Checkpoints that go from mesh to mesh: what the tests run on every rank."""

from __future__ import annotations

import os
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from zero_on_ranks import batch

import shardlang
from shardlang.api import Program
from shardlang.runtime.trainer.random_states import RandomStates

SPECS = {
    "dp4": "mesh { dp = 4 } input ids, labels : i64[8] [dp]",
    "tp2 x dp2": """mesh { dp = 2 tp = 2 }
        input ids, labels : i64[8] [dp]
        param "up.*" [tp, ...]
        param "down.weight" [_, tp]
        param "mixed.*" [tp(2), ...]
        store gradients "**" over dp""",
    "fsdp4": 'mesh { dp = 4 } input ids, labels : i64[8] [dp] store "**" over dp',
}
"""The meshes of the chain."""

EACH = 5
"""Steps on each mesh; one process takes as many after them."""


class Small(nn.Module):
    """Tied weights, uneven and packed dims, a number and a buffer."""

    seen: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 6)
        self.up, self.down, self.mixed = nn.Linear(6, 5), nn.Linear(5, 6), nn.Linear(6, 12)
        self.head = nn.Linear(6, 7, bias=False)
        self.head.weight = self.embed.weight
        self.log_scale = nn.Parameter(torch.randn(()))
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))

    def forward(self, ids: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Shapes `b`."""
        self.seen += 1
        x = self.embed(ids)
        x = x + self.down(torch.tanh(self.up(x)))
        left, right = self.mixed(x).chunk(2, -1)
        logits = self.head(left * torch.sigmoid(right)) * self.log_scale.exp()
        return {"loss": F.cross_entropy(logits, labels)}


def small() -> nn.Module:
    """In float64."""
    torch.manual_seed(4)
    return Small().double()


def program(name: str) -> Program:
    """The small model by a spec."""
    path = Path(mkdtemp()) / "spec.shard"
    path.write_text(SPECS[name] + "\noptimizer adamw(lr = 0.02, clip = 0.5)\n")
    return shardlang.compile(path, model=small)


def whole(tensor: Tensor) -> Tensor:
    """All of it."""
    found = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return found.detach().clone()


def states_of(module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, dict[str, Tensor]]:
    """The states of every parameter, whole, by name."""
    return {
        name: {key: whole(value) for key, value in optimizer.state[param].items()}
        for name, param in module.named_parameters()
    }


def weights_of(module: nn.Module) -> dict[str, Tensor]:
    """All parameters and buffers, whole."""
    return {name: whole(value) for name, value in module.state_dict().items()}


def everything() -> dict[str, Any]:
    """Five steps on each mesh of the chain, and a loop of one's own."""
    scratch, losses = Path(os.environ["SCRATCH"]), []
    for name in SPECS:
        made = program(name)
        module, optimizer = made.load(seed=len(losses)), made.optimizer()
        state = {"model": module, "optimizer": optimizer}
        checkpoints = made.checkpoints(scratch / "chain", keep=1)
        first = checkpoints.load(state) or 0
        assert first == len(losses)
        for step in range(first, first + EACH):
            losses.append(made.step(batch(step)).loss)
        checkpoints.save(len(losses), state)
        end = weights_of(module), states_of(module, optimizer)
        with torch.no_grad():
            for param in module.parameters():
                param.mul_(2)  # the copies were made before
        checkpoints.wait()
    own = own_loop(made, module, scratch / "own")
    return {"losses": losses, "end": end, "own": own}


def own_loop(made: Program, module: nn.Module, folder: Path) -> dict[str, list[Tensor]]:
    """An optimizer of torch in groups, a schedule, and generators that differ between ranks."""
    flat = [p for p in module.parameters() if p.dim() < 2]
    others = [p for p in module.parameters() if p.dim() > 1]
    groups = [{"params": others, "weight_decay": 0.1}, {"params": flat, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-2)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 4])
    state = {
        "model": module,
        "optimizer": optimizer,
        "schedule": schedule,
        "random": RandomStates(),
    }
    torch.manual_seed(torch.distributed.get_rank())

    def trained(steps: range) -> list[Tensor]:
        found = []
        for step in steps:
            loss = module(**module.shard_inputs(**batch(step)))["loss"]
            loss.backward()
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            found.append(torch.stack([loss.detach(), torch.rand((), dtype=torch.float64)]))
        return found

    trained(range(3))
    with made.checkpoints(folder) as checkpoints:
        checkpoints.save(3, state)
        after = trained(range(3, 6))
        checkpoints.load(state)
    return {"after": after, "again": trained(range(3, 6))}


def plain() -> tuple[nn.Module, torch.optim.Optimizer]:
    """The plain model and its optimizer."""
    model = small()
    return model, torch.optim.AdamW(model.parameters(), lr=0.02)


def plain_step(model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> float:
    """One step of the plain model."""
    loss = model(**batch(step))["loss"]
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 0.5)
    optimizer.step()
    optimizer.zero_grad()
    return loss.item()
