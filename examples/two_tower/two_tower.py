"""A recommender with two towers: the click score is the inner product of two embeddings."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional


def tower(features: int, width: int, dropout: float) -> nn.Sequential:
    """A perceptron with dropout, shapes `b features -> b width`."""
    return nn.Sequential(
        nn.Linear(features, 2 * width),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Linear(2 * width, width),
        nn.LayerNorm(width),
    )


class TwoTower(nn.Module):
    """Scores pairs of a user and an item; `batch["labels"]["click"]` holds the truth."""

    def __init__(self, width: int, dropout: float, features: int = 128) -> None:
        super().__init__()
        self.user_tower = tower(features, width, dropout)
        self.item_tower = tower(features, width, dropout)

    def forward(self, user: Tensor, item: Tensor, batch: dict[str, Any]) -> dict[str, Tensor]:
        """The mean squared error of the score, and the score; shapes `b features`."""
        score = (self.user_tower(user) * self.item_tower(item)).sum(-1)
        click = batch["labels"]["click"]
        return {"loss": functional.mse_loss(score.sigmoid(), click), "score": score}


def build(width: int, dropout: float, mode: str = "train") -> nn.Module:
    """Two towers of `width`, in train or eval mode."""
    return TwoTower(width, dropout).train(mode == "train")
