"""Megatron-LM's two-layer perceptron, with biases."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional


class Mlp(nn.Module):
    """`down(gelu(up(x)))` and the mean square of its distance from `target`; shapes `b s m`."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, inner)
        self.down = nn.Linear(inner, width)

    def forward(self, x: Tensor, target: Tensor) -> dict[str, Tensor]:
        """The prediction and its loss."""
        y = self.down(functional.gelu(self.up(x)))
        return {"loss": functional.mse_loss(y, target), "prediction": y}


def build(width: int, inner: int) -> nn.Module:
    """A perceptron from `width` to `width` through `inner`."""
    return Mlp(width, inner)
