"""Models of plain torch for the zoo."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Translator(nn.Module):
    """`torch.nn.Transformer` between a shared embedding and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(31, 16)
        self.body = nn.Transformer(
            16, 4, 2, 2, dim_feedforward=20, dropout=0.1, batch_first=True, norm_first=True
        )
        self.head = nn.Linear(16, 31, bias=False)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        """The loss of predicting every next token of `target`. Shapes `b s` and `b t`."""
        length = target.shape[1] - 1
        mask = nn.Transformer.generate_square_subsequent_mask(length)
        made = self.body(
            self.embed(source), self.embed(target[:, :-1]), tgt_mask=mask, tgt_is_causal=True
        )
        return F.cross_entropy(self.head(made).flatten(0, 1), target[:, 1:].flatten())


class Block(nn.Module):
    """Two 3x3 convolutions beside a skip connection."""

    def __init__(self, before: int, after: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(after)
        self.skip = nn.Conv2d(before, after, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Shape `n c h w`."""
        made = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        return F.relu(made + self.skip(x))


class Residual(nn.Module):
    """A small ResNet with a 7x7 stem and a maximum pool, as the paper has them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 7, 2, 3, bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.blocks = nn.Sequential(Block(6, 8), Block(8, 10, 2))
        self.head = nn.Linear(10, 5)

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        """The loss of classifying images. Shape `n c h w`."""
        x = self.blocks(self.pool(F.relu(self.norm(self.stem(x)))))
        return F.cross_entropy(self.head(x.mean((2, 3))), labels)


class Double(nn.Module):
    """Two 3x3 convolutions with group norm."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, padding=1, bias=False)
        self.norm = nn.GroupNorm(2, after)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Shape `n c h w`."""
        return F.silu(self.norm(self.conv2(F.silu(self.conv1(x)))))


class UNet(nn.Module):
    """Two scales: down by pooling, up by a transposed convolution, joined along the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.down = Double(3, 6)
        self.middle = Double(6, 8)
        self.up = nn.ConvTranspose2d(8, 6, 2, 2)
        self.join = Double(12, 6)
        self.head = nn.Conv2d(6, 5, 1)

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        """The loss of classifying pixels. Shapes `n c h w` and `n h w`."""
        high = self.down(x)
        low = self.middle(F.max_pool2d(high, 2))
        low = low + F.interpolate(low.mean((2, 3), keepdim=True), size=low.shape[2:])
        joined = self.join(torch.cat([high, self.up(low)], 1))
        return F.cross_entropy(self.head(joined), labels)


class Functional(nn.Module):
    """Attention and an MLP of parameters alone, by einsum and functional operators."""

    def __init__(self) -> None:
        super().__init__()
        self.wqkv = nn.Parameter(torch.randn(3, 12, 4, 3))
        self.wo = nn.Parameter(torch.randn(4, 3, 12))
        self.w1 = nn.Parameter(torch.randn(12, 20))
        self.w2 = nn.Parameter(torch.randn(20, 12))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """A mean of squares. Shapes `b s d`."""
        q, k, v = torch.einsum("bsd,cdhe->cbhse", F.layer_norm(x, (12,)), self.wqkv).unbind()
        weights = torch.einsum("bhqe,bhke->bhqk", q, k) / 3**0.5
        weights = weights.masked_fill(torch.ones(10, 10).triu(1).bool(), float("-inf"))
        made = torch.einsum("bhqk,bhke->bqhe", F.softmax(weights, -1), v)
        x = x + torch.einsum("bqhe,hed->bqd", made, self.wo)
        hidden = F.gelu(torch.tensordot(F.normalize(x, dim=-1), self.w1, dims=1))
        x = x + torch.einsum("...f,fd->...d", hidden, self.w2)
        spread = torch.logsumexp(x, -1).var() + torch.cumsum(x, 1).abs().amax(-1).mean()
        return F.smooth_l1_loss(x, y) + 0.1 * spread


def transformer() -> nn.Module:
    """`torch.nn.Transformer`."""
    return Translator()


def residual() -> nn.Module:
    """A ResNet."""
    return Residual()


def unet() -> nn.Module:
    """A U-Net."""
    return UNet()


def functional() -> nn.Module:
    """A model of einsum and functional operators."""
    return Functional()
