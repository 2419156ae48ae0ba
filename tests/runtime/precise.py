"""Models in bf16 and f16, their batches, and how the plain model is trained with the same casts."""

from __future__ import annotations

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
    if step == OVERFLOWS and dtype is torch.float16:
        drawn[-1, 0] = 3e3
    return {"x": drawn.to(dtype)}


class Plain:
    """The plain model, each device's rows by themselves, and f32 weights that are updated.

    The gradients of the parts are added up in f32 and rounded once.
    """

    def __init__(self, model: nn.Module, parts: int, scaled: bool, lr: float, clip: float) -> None:
        self.model, self.parts, self.clip = model, parts, clip
        self.params = list(model.parameters())
        self.masters = [nn.Parameter(p.detach().float()) for p in self.params]
        self.optimizer = torch.optim.AdamW(self.masters, lr=lr)
        self.scaler = torch.amp.GradScaler("cpu", enabled=scaled)

    def step(self, x: Tensor) -> float:
        """One step; gives the loss."""
        sums, loss = [torch.zeros_like(m) for m in self.masters], 0.0
        for rows in x.tensor_split(self.parts):
            made = self.model(rows)["loss"]
            self.scaler.scale(made).backward()
            loss += made.item()
            for total, p in zip(sums, self.params, strict=True):
                assert p.grad is not None
                total += p.grad
                p.grad = None
        for master, total, p in zip(self.masters, sums, self.params, strict=True):
            master.grad = total.to(p.dtype).float()
        self.scaler.unscale_(self.optimizer)
        nn.utils.clip_grad_norm_(self.masters, self.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        with torch.no_grad():
            for master, p in zip(self.masters, self.params, strict=True):
                p.copy_(master)
        return loss
