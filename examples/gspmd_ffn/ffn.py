"""A stack of feed-forward blocks, as in the GSPMD paper: expand, activate, contract."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class Block(nn.Module):
    """`x + gelu(x w_in) w_out`, with weights stored (in, out); shapes `b s m`."""

    def __init__(self, d_model: int, d_ff: int) -> None:
        super().__init__()
        self.w_in = nn.Parameter(torch.randn(d_model, d_ff) / d_model**0.5)
        self.w_out = nn.Parameter(torch.randn(d_ff, d_model) / d_ff**0.5)

    def forward(self, x: Tensor) -> Tensor:
        """One residual block."""
        return x + functional.gelu(x @ self.w_in) @ self.w_out


class Stack(nn.Module):
    """Blocks one after another."""

    def __init__(self, d_model: int, d_ff: int, layers: int) -> None:
        super().__init__()
        self.ffn = nn.ModuleList(Block(d_model, d_ff) for _ in range(layers))

    def forward(self, x0: Tensor) -> Tensor:
        """Apply every block."""
        for block in self.ffn:
            x0 = block(x0)
        return x0


def build(d_model: int, d_ff: int, layers: int = 2) -> nn.Module:
    """A stack of `layers` blocks."""
    return Stack(d_model, d_ff, layers)
