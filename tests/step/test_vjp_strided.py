"""The ops of a call take operands however they lie: a trace sees them dense, a run may not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from shardlang.ir.step import Operand
from shardlang.proof.rules.calls import AtenCall
from shardlang.proof.rules.own import own_calls
from shardlang.vjp.op_call import NotTraced, OpCall, Shard
from shardlang.vjp.trace import trace
from shardlang.vjp.traced import Traced

aten = torch.ops.aten


def strided(x: Tensor) -> Tensor:
    """The same numbers with gaps, or with the dims in the other order in memory."""
    if x.dim() < 2:
        return x.new_empty(*x.shape, 2)[..., 0].copy_(x)
    return x.new_empty(x.shape[::-1]).permute(*reversed(range(x.dim()))).copy_(x)


def results(made: Any) -> list[Any]:
    return [made] if isinstance(made, Tensor) else list(made)


def run(
    traced: Traced, call: OpCall, xs: list[Tensor], cotangents: list[Tensor]
) -> dict[fx.Node | None, Tensor]:
    """Every value of the ops of a call."""
    env: dict[fx.Node | None, Any] = dict(zip(traced.operands, xs, strict=True))
    env.update(zip(traced.cotangents, cotangents, strict=True))
    if traced.whole:
        args, kwargs = pytree.tree_map_only(
            Operand, lambda one: xs[one.index], (call.args, call.kwargs)
        )
        env.update(zip(traced.results, results(call.target(*args, **kwargs)), strict=True))
    for node in traced.nodes():
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: env[n])
        assert callable(node.target)
        env[node] = node.target(*args, **kwargs)
    return env


def compared(one: AtenCall) -> int:
    """Compare one call of strided operands with autograd on the same; how much was compared."""
    given: list[Tensor] = []

    def put(x: Tensor) -> Operand:
        given.append(strided(x.detach()))
        return Operand(len(given) - 1)

    args, kwargs = pytree.tree_map_only(Tensor, put, (one.args, one.kwargs))
    wanted = [i for i, x in enumerate(given) if x.is_floating_point()]
    leaves = [x.detach().requires_grad_(i in wanted) for i, x in enumerate(given)]
    call = pytree.tree_map_only(Operand, lambda o: leaves[o.index], (args, kwargs))
    try:
        made = results(one.target(*call[0], **call[1]))
    except RuntimeError:
        return 0  # the plain op takes no such operand
    tensors = [x for x in made if isinstance(x, Tensor)]
    ends = [i for i, x in enumerate(tensors) if x.requires_grad]
    if not ends:
        return 0
    shards = tuple(Shard(tuple(x.shape), x.dtype) for x in given)
    asked = OpCall(one.target, args, kwargs, shards, tuple(wanted), tuple(ends), given[0].device)
    try:
        traced = trace(asked)
    except (NotTraced, RuntimeError):
        return 0
    cotangents = [strided(torch.randn_like(tensors[i])) for i in ends]
    want = torch.autograd.grad(
        [tensors[i] for i in ends], [leaves[i] for i in wanted], cotangents, allow_unused=True
    )
    env = run(traced, asked, given, cotangents)
    pairs = list(zip((env.get(g) for g in traced.gradients.values()), want, strict=True))
    pairs += [(env.get(n), made[i].detach()) for i, n in enumerate(traced.results) if i in ends]
    both = [(a, b) for a, b in pairs if a is not None and b is not None]
    for mine, plain in both:
        torch.testing.assert_close(mine, plain, rtol=1e-9, atol=1e-9, equal_nan=True)
    return len(both)


OTHERS = [
    AtenCall(
        aten.group_norm.default, (torch.randn(3, 4, 5), 2, torch.randn(4), torch.randn(4)), {}
    ),
    AtenCall(aten.pdist.default, (torch.randn(5, 3),), {}),
]
DIFFERENTIABLE = [*OTHERS, *own_calls()]


@pytest.mark.parametrize("part", range(4))
def test_operands_may_lie_otherwise_than_in_the_trace(part: int) -> None:
    found = [_of(one) for one in DIFFERENTIABLE[part::4]]
    assert sum(count > 0 for count in found) > len(found) // 4


def _of(one: AtenCall) -> int:
    try:
        return compared(one)
    except AssertionError as error:
        raise AssertionError(f"{one.target}: {error}") from None
    except RuntimeError as error:
        if "not differentiable with respect to" in str(error):
            return 0
        raise AssertionError(f"{one.target}: {error}") from None
