"""A model of which each forward reads beyond the edges of shards in its own way."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WAYS = (
    "diff", "slices", "roll", "flip", "token_shift", "causal", "circular", "reflect", "replicate",
    "windows", "narrow", "strided", "average", "largest", "transposed", "wide", "patches", "joined",
    "shifted", "wrapped", "padded", "mixed",
)  # fmt: skip


class Net(nn.Module):
    """From `b s c`, for each way another length of `s`, or another shape behind it."""

    def __init__(self, ways: str) -> None:
        super().__init__()
        self.ways = ways.split()
        self.scale = nn.Parameter(torch.randn(4))
        self.conv = nn.Conv1d(4, 4, 4, padding=3, groups=2)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = torch.tanh(x * self.scale)
        made = {way: getattr(self, way)(x) for way in self.ways}
        return {"loss": torch.stack([self.weighted(y) for y in made.values()]).sum(), **made}

    def weighted(self, y: Tensor) -> Tensor:
        """A sum in which every index of `s` counts in its own way."""
        places = torch.arange(y.shape[1], dtype=y.dtype).view(-1, *[1] * (y.dim() - 2))
        return (y * y * (places - 3)).sum()

    def repeated(self, x: Tensor) -> Tensor:
        return x.repeat_interleave(2, 1)[:, 1:]

    def diff(self, x: Tensor) -> Tensor:
        return torch.diff(x, 2, dim=1)

    def slices(self, x: Tensor) -> Tensor:
        return x[:, 1:] - x[:, :-1]

    def roll(self, x: Tensor) -> Tensor:
        return torch.roll(x, (-3, 1), (1, 2)) * x

    def flip(self, x: Tensor) -> Tensor:
        return torch.flip(x, (1,)) * x

    def token_shift(self, x: Tensor) -> Tensor:
        return x + F.pad(x, (0, 0, 1, -1)) * self.scale

    def causal(self, x: Tensor) -> Tensor:
        return self.conv(x.transpose(1, 2))[..., : x.shape[1]].transpose(1, 2) * x

    def circular(self, x: Tensor) -> Tensor:
        return F.pad(x.transpose(1, 2), (2, 1), mode="circular").transpose(1, 2)

    def reflect(self, x: Tensor) -> Tensor:
        return F.pad(x.transpose(1, 2), (3, 5), mode="reflect").transpose(1, 2)

    def replicate(self, x: Tensor) -> Tensor:
        return F.pad(x.transpose(1, 2), (2, 3), mode="replicate").transpose(1, 2)

    def windows(self, x: Tensor) -> Tensor:
        return x.unfold(1, 5, 2)

    def narrow(self, x: Tensor) -> Tensor:
        return x.narrow(1, 3, x.shape[1] - 5)

    def strided(self, x: Tensor) -> Tensor:
        return x[:, 1::3] + x[:, :-1:3]

    def average(self, x: Tensor) -> Tensor:
        return F.avg_pool1d(x.transpose(1, 2), 3, 2, 1).transpose(1, 2)

    def largest(self, x: Tensor) -> Tensor:
        return F.max_pool1d(x.transpose(1, 2), 3, 2, 1, ceil_mode=True).transpose(1, 2)

    def transposed(self, x: Tensor) -> Tensor:
        made = F.conv_transpose1d(
            x.transpose(1, 2), self.conv.weight, stride=3, padding=2, groups=4
        )
        return made.transpose(1, 2)

    def wide(self, x: Tensor) -> Tensor:
        """Every output reads more than half of the dim, of many devices."""
        weight = self.conv.weight.repeat(1, 1, 4)[:, :1]
        return F.conv1d(x.transpose(1, 2), weight, padding=7, groups=4).transpose(1, 2)

    def patches(self, x: Tensor) -> Tensor:
        return F.unfold(x[:, None], (3, 2), padding=1, stride=(2, 1)).transpose(1, 2)

    def joined(self, x: Tensor) -> Tensor:
        return torch.cat([x[:, 2:], x[:, :2]], 1) * x

    def shifted(self, x: Tensor) -> Tensor:
        return torch.cat([torch.zeros_like(x[:, :1]), x[:, :-1]], 1) * x

    def wrapped(self, x: Tensor) -> Tensor:
        return torch.cat([x[:, -2:], x, x[:, :2]], 1).unfold(1, 5, 1)

    def padded(self, x: Tensor) -> Tensor:
        longer = F.pad(x.transpose(1, 2), (3, 0))
        return F.conv1d(longer, self.conv.weight, groups=2).transpose(1, 2)

    def mixed(self, x: Tensor) -> Tensor:
        """A slice beside the tensor that it is cut from, which reads another one itself."""
        turned = x[:, 1:].flip(1)
        return torch.cat([turned[:, 1:], turned], 1)


def build(ways: str) -> nn.Module:
    """The model, in float64."""
    return Net(ways).double()
