"""Small models with unusual inputs, outputs, parameters and buffers; `x` has shape `b d`."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTH, INNER = 10, 14


class Base(nn.Module):
    """A perceptron."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(WIDTH, INNER)
        self.down = nn.Linear(INNER, WIDTH)

    def mlp(self, x: Tensor) -> Tensor:
        """The perceptron of `x`."""
        return self.down(F.gelu(self.up(x)))


class Keywords(Base):
    """Inputs by keyword alone, plain values with defaults, and a tensor that may be absent."""

    def forward(
        self,
        x: Tensor,
        *,
        scale: float = 2.0,
        flag: bool = True,
        mode: str = "sum",
        bias: Tensor | None = None,
    ) -> Tensor:
        y = self.mlp(x) * scale
        if bias is not None:
            y = y + bias
        return y.pow(2).sum() if mode == "sum" and flag else y.mean()


class NestedInputs(Base):
    """Dicts in dicts, and a list."""

    def forward(self, batch: dict[str, Any], extra: list[Tensor]) -> Tensor:
        y = self.mlp(batch["x"]) + extra[0] - extra[1]
        return (y * batch["inner"]["mask"].to(y.dtype)[:, None]).pow(2).mean()


class NestedOutputs(Base):
    """Results in dicts, tuples and lists, with None and plain values among them."""

    def forward(self, x: Tensor) -> dict[str, Any]:
        hidden = self.up(x)
        y = self.down(hidden.relu())
        deep = [y, {"deep": y.argmax(-1)}]
        return {"loss": y.pow(2).mean(), "aux": (hidden.sum(-1), None, deep), "n": 3, "none": None}


class Losses(Base):
    """Two losses and their sum, of which the spec names one."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y = self.mlp(x)
        first, second = y.pow(2).mean(), (y - x).abs().mean()
        return {"first": first, "second": second, "total": first + 0.3 * second}


class NoLoss(Base):
    """No scalar at all."""

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp(x)


class Frozen(Base):
    """A frozen matrix, a frozen bias, and a parameter that nothing reads."""

    def __init__(self) -> None:
        super().__init__()
        self.up.weight.requires_grad_(False)
        self.down.bias.requires_grad_(False)
        self.unused = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp(x).pow(2).mean()


class Mixed(Base):
    """Weights in bf16 in one layer and f32 in the other."""

    def __init__(self) -> None:
        super().__init__()
        self.up.to(torch.bfloat16)

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.gelu(self.up(x.to(torch.bfloat16)))
        return self.down(hidden.float()).pow(2).mean()


class Half(Base):
    """Everything in bf16."""

    def __init__(self) -> None:
        super().__init__()
        self.to(torch.bfloat16)

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp(x).float().pow(2).mean()


class Statistics(Base):
    """Batch norm: statistics over the rows of all devices, and buffers that it writes."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(INNER)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.norm(self.up(x)).relu()).pow(2).mean()


class Written(Base):
    """Buffers that the forward writes: a count, a moving average, rows of a cache."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.register_buffer("average", torch.zeros(INNER))
        self.register_buffer("cache", torch.zeros(4, INNER))

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.gelu(self.up(x))
        self.calls += 1
        self.average.mul_(0.9).add_(0.1 * hidden.detach().mean(0))
        self.cache[1:3] = hidden.detach()[:2]
        return (self.down(hidden) + self.average.sum() + self.cache.sum()).pow(2).mean()


class Tied(Base):
    """One weight under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.again = nn.Linear(INNER, WIDTH, bias=False)
        self.again.weight = self.down.weight
        self.table = nn.Embedding(WIDTH, INNER)

    def forward(self, x: Tensor, ids: Tensor) -> Tensor:
        return (self.mlp(x) + self.again(self.table(ids))).pow(2).mean()


class Twice(Base):
    """One module called twice."""

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp(self.mlp(x) + x).pow(2).mean()
