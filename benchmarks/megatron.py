"""Llama with tensor parallelism, written by hand as Megatron-LM does it (Shoeybi et al., 2019).

Shapes: b batch, s sequence, m hidden, h local heads, d head size, v local vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional


class CopyToAll(torch.autograd.Function):
    """Megatron's f: identity forward, all-reduce backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        grad = grad.contiguous()
        dist.all_reduce(grad)
        return grad


class SumOfAll(torch.autograd.Function):
    """Megatron's g: all-reduce forward, identity backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.clone()
        dist.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


def slice_of(full: Tensor, dim: int) -> nn.Parameter:
    """This rank's shard of a weight."""
    part = full.detach().chunk(dist.get_world_size(), dim)[dist.get_rank()]
    return nn.Parameter(part.clone())


class Norm(nn.Module):
    """RMS norm over the hidden dim, `b s m -> b s m`."""

    def __init__(self, weight: Tensor, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(weight.detach().clone()), eps

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps))


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding of `b h s d`."""
    left, right = x.chunk(2, -1)
    return x * cos + torch.cat((-right, left), -1) * sin


class Layer(nn.Module):
    """One decoder layer with column- and row-parallel weights."""

    def __init__(self, weights: dict[str, Tensor], eps: float, head_dim: int) -> None:
        super().__init__()
        self.norm1 = Norm(weights["input_layernorm.weight"], eps)
        self.norm2 = Norm(weights["post_attention_layernorm.weight"], eps)
        self.q, self.k, self.v = (slice_of(weights[f"self_attn.{n}_proj.weight"], 0) for n in "qkv")
        self.o = slice_of(weights["self_attn.o_proj.weight"], 1)
        self.gate = slice_of(weights["mlp.gate_proj.weight"], 0)
        self.up = slice_of(weights["mlp.up_proj.weight"], 0)
        self.down = slice_of(weights["mlp.down_proj.weight"], 1)
        self.head_dim = head_dim

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.attention(CopyToAll.apply(self.norm1(x)), cos, sin)
        return x + self.mlp(CopyToAll.apply(self.norm2(x)))

    def attention(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Causal attention over this rank's heads."""
        b, s, _ = x.shape
        q, k, v = (
            functional.linear(x, w).view(b, s, -1, self.head_dim).transpose(1, 2)
            for w in (self.q, self.k, self.v)
        )
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        y = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        y = y.transpose(1, 2).reshape(b, s, -1)
        return SumOfAll.apply(functional.linear(y, self.o))

    def mlp(self, x: Tensor) -> Tensor:
        """The gated perceptron over this rank's inner dim."""
        inner = functional.silu(functional.linear(x, self.gate)) * functional.linear(x, self.up)
        return SumOfAll.apply(functional.linear(inner, self.down))


class Llama(nn.Module):
    """The model with vocabulary-parallel embedding, head and loss."""

    def __init__(self, weights: dict[str, Tensor], config: Any) -> None:
        super().__init__()
        self.embed = slice_of(weights["model.embed_tokens.weight"], 0)
        self.head = slice_of(weights["lm_head.weight"], 0)
        self.norm = Norm(weights["model.norm.weight"], config.rms_norm_eps)
        self.layers = nn.ModuleList(
            Layer(below(weights, f"model.layers.{i}."), config.rms_norm_eps, config.head_dim)
            for i in range(config.num_hidden_layers)
        )
        self.first = dist.get_rank() * self.embed.shape[0]
        self.head_dim, self.theta = config.head_dim, config.rope_parameters["rope_theta"]

    def forward(self, ids: Tensor, labels: Tensor) -> Tensor:
        """The mean loss over the next tokens."""
        x = self.embedding(ids)
        cos, sin = self.positions(ids.shape[1])
        for layer in self.layers:
            x = layer(x, cos, sin)
        logits = functional.linear(CopyToAll.apply(self.norm(x)), self.head)
        return self.loss(logits, functional.pad(labels, (0, 1), value=-100)[:, 1:])

    def embedding(self, ids: Tensor) -> Tensor:
        """Rows that this rank holds, zero elsewhere, summed."""
        local, inside = self.local(ids)
        return SumOfAll.apply(functional.embedding(local, self.embed) * inside.unsqueeze(-1))

    def local(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Ids within this rank's shard of the vocabulary, and where they are."""
        local = ids - self.first
        inside = (local >= 0) & (local < self.embed.shape[0])
        return local.where(inside, 0), inside

    def positions(self, length: int) -> tuple[Tensor, Tensor]:
        """Cosines and sines, `s d`."""
        rates = self.theta ** -(torch.arange(0, self.head_dim, 2) / self.head_dim)
        angles = torch.arange(length)[:, None] * rates[None]
        angles = torch.cat((angles, angles), -1)
        return angles.cos(), angles.sin()

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Vocabulary-parallel cross-entropy of `b s v`, the mean over labels that count."""
        with torch.no_grad():
            top = logits.amax(-1, keepdim=True)
            dist.all_reduce(top, dist.ReduceOp.MAX)
        shifted = logits - top
        total = SumOfAll.apply(shifted.exp().sum(-1))
        local, inside = self.local(labels)
        mine = shifted.gather(-1, local.unsqueeze(-1)).squeeze(-1) * inside
        losses = total.log() - SumOfAll.apply(mine)
        counted = labels != -100
        return (losses * counted).sum() / counted.sum()

    def names(self) -> dict[str, nn.Parameter]:
        """Parameters under the names of the model that it stands for."""
        found = {
            "model.embed_tokens.weight": self.embed,
            "model.norm.weight": self.norm.weight,
            "lm_head.weight": self.head,
        }
        for i, layer in enumerate(self.layers):
            short = {"norm1.weight": "input_layernorm", "norm2.weight": "post_attention_layernorm"}
            for name, value in layer.named_parameters():
                part = "self_attn" if name in "qkvo" else "mlp"
                full = short.get(name, f"{part}.{name}_proj")
                found[f"model.layers.{i}.{full}.weight"] = value
        return found


def below(weights: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The weights under a prefix."""
    return {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
