"""A model with dropout and a buffer, and batches that harm the run where the test says so."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn


class Noisy(nn.Module):
    """Dropout between two layers; counts its calls."""

    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.up, self.drop, self.down = nn.Linear(6, 5), nn.Dropout(0.3), nn.Linear(5, 3)
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))

    def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        """Shapes `b 6` and `b 3`."""
        self.calls += 1
        return {"loss": (self.down(self.drop(torch.tanh(self.up(x)))) - y).square().mean()}


def build() -> nn.Module:
    """The model."""
    return Noisy()


def batches(seed: int) -> Iterator[dict[str, Tensor]]:
    """Random ones; `HARM=nan:4,term:6` spoils the fourth and ends the run at the sixth."""
    if "PIDS" in os.environ:
        Path(os.environ["PIDS"], os.environ["RANK"]).write_text(str(os.getpid()))
    generator = torch.Generator().manual_seed(seed)
    harms = dict(
        pair.split(":")[::-1] for pair in filter(None, os.environ.get("HARM", "").split(","))
    )
    step = 0
    while True:
        step += 1
        x, y = torch.randn(4, 6, generator=generator), torch.randn(4, 3, generator=generator)
        harm = harms.get(str(step))
        if harm == "nan":
            x[0, 0] = torch.nan
        if harm == "term":
            os.kill(os.getpid(), signal.SIGTERM)
        if harm == "slow":
            time.sleep(0.2)
        yield {"x": x, "y": y}
