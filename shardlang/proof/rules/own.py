"""Calls that PyTorch's samples lack: bigger uneven dims, ties, ignored entries, grouped heads."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from shardlang.proof.rules.calls import AtenCall
from shardlang.proof.rules.own_overloads import overload_calls
from shardlang.proof.rules.own_prims import prim_calls
from shardlang.rules import local
from shardlang.rules.registry import in_torch
from shardlang.rules.schema import Operator

aten = torch.ops.aten


def numbers(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    """Numbers of both signs, none of them zero."""
    generator = torch.Generator().manual_seed(seed + 31 * sum(shape) + len(shape))
    return torch.randn(shape, dtype=dtype, generator=generator)


def below(top: int, *shape: int) -> Tensor:
    """Integers from 0 to `top`, exclusive."""
    generator = torch.Generator().manual_seed(top + sum(shape))
    return torch.randint(0, top, shape, generator=generator)


def mask(*shape: int) -> Tensor:
    """Truth values, mostly true."""
    return numbers(*shape, seed=7) > -0.7


def _call(target: Operator, *args: object, **kwargs: object) -> AtenCall:
    return AtenCall(target, args, kwargs)


def own_calls() -> Iterator[AtenCall]:
    """All calls of ours."""
    yield from _contractions()
    yield from _extremes()
    yield from _reductions()
    yield from _normalisations()
    yield from _losses()
    yield from _attention()
    yield from _random()
    yield from _lookups()
    yield from _recurrent()
    yield from _pointwise()
    yield from prim_calls()
    yield from overload_calls()


def _contractions() -> Iterator[AtenCall]:
    yield _call(aten.linear.default, numbers(3, 5, 7), numbers(8, 7), numbers(8))
    yield _call(aten.linear.default, numbers(5, 7), numbers(8, 7))
    yield _call(aten.addmm.default, numbers(8), numbers(5, 7), numbers(7, 8), beta=0.5, alpha=2)
    yield _call(aten.addmm.default, numbers(5, 1), numbers(5, 7), numbers(7, 8))
    yield _call(aten.baddbmm.default, numbers(5, 8), numbers(3, 5, 7), numbers(3, 7, 8))
    yield _call(aten.matmul.default, numbers(2, 1, 5, 7), numbers(3, 7, 8))
    yield _call(aten.matmul.default, numbers(7), numbers(3, 7, 8))
    yield _call(aten.einsum.default, "bshd,bthd->bhst", [numbers(2, 5, 3, 7), numbers(2, 4, 3, 7)])
    yield _call(aten.einsum.default, "...i,i", [numbers(4, 5, 7), numbers(7)])
    yield _call(aten.einsum.default, "ij,jk,k->i", [numbers(5, 7), numbers(7, 6), numbers(6)])
    yield _call(aten.linalg_multi_dot.default, [numbers(5), numbers(5, 7), numbers(7, 6)])
    yield _call(aten.bilinear.default, numbers(5, 7), numbers(5, 6), numbers(4, 7, 6), numbers(4))
    yield _call(aten.kron.default, numbers(4, 5), numbers(6))


def _extremes() -> Iterator[AtenCall]:
    tied = below(3, 5, 7).double()
    for target in (aten.amax.default, aten.amin.default):
        yield _call(target, tied, [1])
        yield _call(target, tied, [0, 1], True)
    yield _call(aten.max.default, tied)
    yield _call(aten.max.dim, tied, 1)
    yield _call(aten.min.dim, tied, 0, True)
    yield _call(aten.max.dim, below(4, 5, 7), 0)
    yield _call(aten.argmax.default, tied)
    yield _call(aten.argmax.default, tied, 1, True)
    yield _call(aten.argmin.default, tied, 0)
    yield _call(aten.aminmax.default, tied, dim=1)


def _reductions() -> Iterator[AtenCall]:
    x = numbers(5, 7, 6)
    yield _call(aten.sum.dim_IntList, x, [0, 2], True)
    yield _call(aten.mean.dim, x, [-1], True)
    yield _call(aten.mean.default, x)
    yield _call(aten.mean.dim, x.to(torch.bfloat16), [1], dtype=torch.float64)
    yield _call(aten.var.correction, x, [1, 2], correction=2, keepdim=True)
    yield _call(aten.std.correction, torch.ones(5, 7, dtype=torch.float64), [1])
    yield _call(aten.logsumexp.default, x, [0, 1])
    yield _call(aten.prod.dim_int, below(3, 5, 7).double(), 1)
    yield _call(aten.prod.default, numbers(5, 7))
    yield _call(aten.cumsum.default, x, 1)
    yield _call(aten.cumsum.default, mask(5, 7), -1, dtype=torch.int64)
    yield _call(aten.cumprod.default, below(3, 5, 7).double(), 1)
    yield _call(aten.any.dim, mask(5, 7), 1)
    yield _call(aten.all.default, mask(5, 7))
    for order in (0.5, 1, 2, 3, math.inf):
        yield _call(aten.linalg_vector_norm.default, below(3, 5, 7).double(), order, [1])
    yield _call(aten.linalg_vector_norm.default, torch.zeros(5, 7, dtype=torch.float64), 2)
    hidden = numbers(5, 7).masked_fill(~mask(5, 7), -math.inf)
    alone = hidden.clone()
    alone[2] = -math.inf
    for target in (aten.softmax.int, aten.log_softmax.int):
        yield _call(target, numbers(3, 5, 7), 1)
    yield _call(aten.softmax.int, hidden, 1)
    yield _call(aten.softmax.int, numbers(5, 7).float(), -1, torch.float64)
    yield _call(aten._safe_softmax.default, alone, -1)


def _normalisations() -> Iterator[AtenCall]:
    x = numbers(3, 5, 7)
    yield _call(aten.layer_norm.default, x, [7], numbers(7), numbers(7))
    yield _call(aten.layer_norm.default, x, [5, 7], None, numbers(5, 7))
    yield _call(aten.rms_norm.default, x, [7], numbers(7), 1e-6)
    yield _call(aten.rms_norm.default, x, [7])
    yield _call(aten.group_norm.default, numbers(3, 10, 5), 2, numbers(10), numbers(10))
    yield _call(aten.group_norm.default, numbers(3, 10, 5), 5)
    plain = (None, None)
    args = (numbers(5), numbers(5), *plain, True, 0.1, 1e-5, False)
    yield _call(aten.batch_norm.default, numbers(6, 5, 4), *args)
    running = (numbers(5), numbers(5) ** 2, False, 0.1, 1e-5, False)
    yield _call(aten.batch_norm.default, numbers(6, 5, 4), numbers(5), numbers(5), *running)
    yield _call(aten.cosine_similarity.default, numbers(5, 7), numbers(5, 7, seed=1), 1)


def _losses() -> Iterator[AtenCall]:
    scores, wide = numbers(9, 11), numbers(4, 11, 5)
    target = below(11, 9)
    target[:4] = -100
    spread = below(11, 4, 5)
    spread[0, :3] = -100
    weight = numbers(11) ** 2
    likely = numbers(9, 11, seed=3).softmax(1)
    for how in (0, 1, 2):
        yield _call(aten.cross_entropy_loss.default, scores, target, None, how)
        yield _call(aten.cross_entropy_loss.default, wide, spread, weight, how, -100, 0.2)
        yield _call(aten.cross_entropy_loss.default, scores, likely, weight, how, -100, 0.1)
        yield _call(aten.nll_loss_nd.default, wide, spread, weight, how)
        yield _call(aten.mse_loss.default, numbers(5, 7), numbers(5, 7, seed=1), how)
        yield _call(aten.smooth_l1_loss.default, numbers(5, 7), numbers(5, 7, seed=1), how)
        yield _call(
            aten.binary_cross_entropy_with_logits.default,
            numbers(5, 7), mask(5, 7).double(), None, numbers(7) ** 2, how,
        )  # fmt: skip


def _attention() -> Iterator[AtenCall]:
    attend = aten.scaled_dot_product_attention.default
    query, key, value = numbers(2, 6, 7, 4), numbers(2, 6, 5, 4), numbers(2, 6, 5, 3)
    yield _call(attend, query, key, value)
    yield _call(attend, query, key, value, None, 0.0, True)
    yield _call(attend, query, key, value, mask(7, 5))
    yield _call(attend, query, key, value, numbers(2, 1, 7, 5), scale=0.3)
    few = (numbers(2, 3, 5, 4), numbers(2, 3, 5, 3))
    yield _call(attend, query, *few, None, 0.0, True, enable_gqa=True)
    yield _call(attend, query, *few, mask(2, 1, 1, 5), enable_gqa=True)
    yield _call(local.attention_scores, query, few[0])
    yield _call(local.attend, numbers(2, 6, 7, 5), few[1])


def _random() -> Iterator[AtenCall]:
    x = numbers(5, 7)
    yield _call(aten.dropout.default, x, 0.4, True)
    yield _call(aten.dropout.default, numbers(7, 5).t(), 0.4, True)
    yield _call(aten.dropout.default, x, 0.4, False)
    yield _call(aten.feature_dropout.default, numbers(5, 7, 3, 2), 0.4, True)
    yield _call(aten.native_dropout.default, x, 0.4, True)
    yield _call(aten.rand.default, [5, 7], dtype=torch.float64)
    yield _call(aten.randn.default, [5, 7], dtype=torch.float64)
    yield _call(aten.randint.low, 3, 50, [5, 7])
    yield _call(aten.rand_like.default, x)
    yield _call(aten.bernoulli.default, x.sigmoid())
    yield _call(aten.bernoulli.p, x, 0.3)
    yield _call(aten.normal.Tensor_Tensor, x, x.abs())
    yield _call(aten.normal.Tensor_float, x, 2.0)


def _recurrent() -> Iterator[AtenCall]:
    def weights(gates: int, hidden: int, *sizes: int) -> list[Tensor]:
        rows = gates * hidden
        made = [
            [numbers(rows, n), numbers(rows, hidden), numbers(rows), numbers(rows)] for n in sizes
        ]
        return [one for layer in made for one in layer]

    x, options = numbers(4, 5, 3), (True, 2, 0.0, True, False, False)
    states = [numbers(2, 5, 6), numbers(2, 5, 6, seed=1)]
    yield _call(aten.lstm.input, x, states, weights(4, 6, 3, 6), *options)
    yield _call(aten.gru.input, x, states[0], weights(3, 6, 3, 6), *options)
    row, old = numbers(5, 3), [numbers(5, 6), numbers(5, 6, seed=1)]
    yield _call(aten.lstm_cell.default, row, old, *weights(4, 6, 3))
    yield _call(aten.gru_cell.default, row, old[0], *weights(3, 6, 3))


def _lookups() -> Iterator[AtenCall]:
    yield _call(aten.embedding.default, numbers(11, 6), below(11, 4, 5))
    yield _call(aten.embedding.default, numbers(11, 6), below(11, 4, 5), int(below(11, 4, 5)[0, 0]))
    yield _call(aten.embedding.default, numbers(11, 6), below(11, 4, 5), -1, True)
    yield _call(local.lookup, numbers(11), below(11, 4, 5))
    yield _call(local.pick, numbers(4, 11, 5), below(11, 4, 5), 1)


def _pointwise() -> Iterator[AtenCall]:
    x, y = numbers(5, 7), numbers(7, seed=1)
    yield _call(aten.add.Tensor, x, y, alpha=2)
    yield _call(aten.add.Tensor, x, 3)
    yield _call(aten.rsub.Scalar, x, 2)
    yield _call(aten.mul.Tensor, x, y)
    yield _call(aten.mul.Tensor, x, numbers())
    yield _call(aten.div.Tensor, x, y)
    yield _call(aten.div.Tensor_mode, x, y, rounding_mode="floor")
    yield _call(aten.masked_fill.Scalar, x, mask(5, 7), 0)
    yield _call(aten.masked_fill.Scalar, x, mask(5, 1), 2)
    yield _call(aten.masked_fill.Tensor, x, mask(7), numbers())
    yield _call(aten.where.self, mask(5, 1), x, y)
    yield _call(aten.where.ScalarOther, mask(5, 7), x, 0)
    yield _call(aten.where.ScalarOther, mask(5, 7), x, 1.5)
    yield _call(aten.lerp.Tensor, x, y, numbers(5, 1))
    yield _call(aten.addcmul.default, x, y, numbers(5, 1), value=0.5)
    yield _call(aten.addcdiv.default, x, y, numbers(5, 1))
    yield _call(aten.to.dtype, x.float(), torch.float64)
    yield _call(aten.to.dtype, x, torch.float32)
    yield _call(aten.type_as.default, x.float(), y)
    yield _call(aten.clone.default, x)
    yield _call(aten.detach.default, x)
    yield _call(aten.glu.default, numbers(5, 14), 1)
    yield _call(aten.linalg__powsum.default, x, 3, [1])
    for op in in_torch("_upsample_lanczos2d_aa.default"):
        yield _call(op, numbers(3, 4, 5, 6), [7, 9], False)
    yield _call(aten.prelu.default, numbers(3, 5, 4), numbers(5))
    yield _call(aten.complex.default, x, numbers(5, 7, seed=1))
