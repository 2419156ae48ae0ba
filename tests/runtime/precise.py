"""Models in bf16 and f16, their batches, and how the plain model is trained with the same casts."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

ROWS, OVERFLOWS = 6, 2
"""Rows of a batch, and the step in which the gradient of the last row is too large for f16."""


class Small(nn.Module):
    """Two linears; the loss is a sum over the rows, each of which counts by its first number."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.up, self.down = nn.Linear(9, 7), nn.Linear(7, 5, bias=False)
        self.to(dtype)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Shapes `b h`."""
        squares = self.down(torch.tanh(self.up(x))).float().square()
        return {"loss": (squares * x[:, :1].float().abs()).sum() / (10 * ROWS)}


def f32() -> nn.Module:
    """In f32."""
    return Small(torch.float32)


def bf16() -> nn.Module:
    """In bf16."""
    return Small(torch.bfloat16)


def f16() -> nn.Module:
    """In f16."""
    return Small(torch.float16)


def batch(step: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """Rows of uneven sizes."""
    drawn = torch.randn(ROWS, 9, generator=torch.Generator().manual_seed(step))
    drawn = drawn * torch.linspace(0.2, 2, ROWS)[:, None]
    if step == OVERFLOWS and dtype is not torch.bfloat16:
        drawn[-1, 0] = 3e3
    return {"x": drawn.to(dtype)}


class Plain:
    """The plain model, each device's rows by themselves, and f32 weights that are updated.

    The gradients of the parts are added up in f32 and rounded once, to the type of the parameters.

    Attributes:
        params: of the type in which the model computes, to which the f32 weights are rounded.
    """

    def __init__(self, own: nn.Module, compute: torch.dtype, parts: int, scaled: bool) -> None:
        self.model, self.parts, self.clip = copy.deepcopy(own).to(compute), parts, 0.5
        self.compute, self.own = compute, next(own.parameters()).dtype
        self.params = list(self.model.parameters())
        self.masters = [nn.Parameter(p.detach().float()) for p in own.parameters()]
        self.optimizer = torch.optim.AdamW(self.masters, lr=0.01)
        self.scaler = torch.amp.GradScaler("cpu", enabled=scaled)

    def step(self, x: Tensor) -> float:
        """One step; gives the loss."""
        sums, loss = [torch.zeros_like(m) for m in self.masters], 0.0
        for rows in x.to(self.compute).tensor_split(self.parts):
            made = self.model(rows)["loss"]
            self.scaler.scale(made).backward()
            loss += made.item()
            for total, p in zip(sums, self.params, strict=True):
                assert p.grad is not None
                total += p.grad
                p.grad = None
        for master, total in zip(self.masters, sums, strict=True):
            master.grad = total.to(self.own).float()
        self.scaler.unscale_(self.optimizer)
        nn.utils.clip_grad_norm_(self.masters, self.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        with torch.no_grad():
            for master, p in zip(self.masters, self.params, strict=True):
                p.copy_(master)
        return loss
