"""The ops of one call, and one text for the calls of several devices."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, fx

from shardlang.ir.step import Operand
from shardlang.vjp.op_call import NotTraced, OpCall, Shard
from shardlang.vjp.trace import trace


def call(target: object, *shapes: tuple[int, ...]) -> OpCall:
    """A call of float64 tensors, all of whose gradients are wanted."""
    assert callable(target)
    shards = tuple(Shard(shape, torch.float64) for shape in shapes)
    slots = tuple(range(len(shapes)))
    return OpCall(target, tuple(map(Operand, slots)), {}, shards, slots, (0,))


def run(one: OpCall, xs: list[Tensor], cotangents: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """The result and gradients that the ops of a call give, backward behind forward."""
    traced = trace(one)
    env: dict[fx.Node | None, Tensor] = dict(zip(traced.operands, xs, strict=True))
    env.update(zip(traced.cotangents, cotangents, strict=True))
    (result,) = traced.results
    if traced.whole:
        env[result] = one.target(*xs)
    for node in traced.nodes():
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: env[n])
        assert callable(node.target)
        env[node] = node.target(*args, **kwargs)
    return env[result], [env[g] for g in traced.gradients.values()]


def written(x: Tensor) -> Tensor:
    """Writes through a view, and into what the view is of."""
    y = torch.zeros_like(x)
    y[1:3] = x[1:3] * x[:2]
    y.mul_(2)
    return y


def chained(x: Tensor) -> Tensor:
    """Writes that only the next write reads."""
    return (x * 2).mul_(x.detach()).add_(1)


@pytest.mark.parametrize("target", [written, chained])
def test_writes_are_not_lost(target: object) -> None:
    assert callable(target)
    x, c = torch.randn(4, 3, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64)
    leaf = x.clone().requires_grad_()
    want = target(leaf)
    want.backward(c)
    made, (gradient,) = run(call(target, (4, 3)), [x], [c])
    torch.testing.assert_close(made, want.detach(), rtol=0, atol=0)
    torch.testing.assert_close(gradient, leaf.grad, rtol=0, atol=0)


def test_what_data_decides_is_not_traced() -> None:
    with pytest.raises(NotTraced):
        trace(call(lambda x: x[x[:, 0] > 0], (4, 3)))


def test_an_op_that_may_copy_is_kept() -> None:
    x = torch.randn(3, 4, dtype=torch.float64).T
    made, gradients = run(call(torch.ops.aten.contiguous.default, (4, 3)), [x], [x])
    assert made.is_contiguous()
    assert gradients[0] is x


KEPT = torch.ones(3, dtype=torch.float64)


def test_a_tensor_of_the_op_itself_is_not_traced() -> None:
    with pytest.raises(NotTraced):
        trace(call(lambda x: x * KEPT, (4, 3)))


def chosen(x: Tensor) -> Tensor:
    """Reads rows by a list of numbers, and writes to what it has read."""
    return x[[3, 1, 3]].mul_(x[:3])


def test_lists_of_numbers_are_written_out() -> None:
    x, c = torch.randn(4, 3, dtype=torch.float64), torch.randn(3, 3, dtype=torch.float64)
    leaf = x.clone().requires_grad_()
    want = chosen(leaf)
    want.backward(c)
    made, (gradient,) = run(call(chosen, (4, 3)), [x], [c])
    torch.testing.assert_close(made, want.detach(), rtol=0, atol=0)
    torch.testing.assert_close(gradient, leaf.grad, rtol=0, atol=0)
    lists = [n.args for n in trace(call(chosen, (4, 3))).nodes() if n.target is torch.tensor]
    assert lists[0] == ([3, 1, 3],)


@pytest.mark.parametrize("dims", [[0, 1], [1]])
@pytest.mark.parametrize("keeps", [True, False])
def test_the_gradient_of_a_mean_is_divided_before_it_is_expanded(
    dims: list[int], keeps: bool
) -> None:
    def averaged(x: Tensor) -> Tensor:
        return x.square().mean(dims, keepdim=keeps)

    leaf = torch.randn(4, 3, dtype=torch.float64).requires_grad_()
    want = averaged(leaf)
    c = torch.randn_like(want)
    want.backward(c)
    one = call(averaged, (4, 3))
    targets = [str(node.target) for node in trace(one).backward]
    assert "aten.pow.Tensor_Scalar" not in targets
    assert targets.index("aten.div.Scalar") < targets.index("aten.expand.default")
    made, (gradient,) = run(one, [leaf.detach()], [c])
    torch.testing.assert_close(made, want.detach(), rtol=0, atol=0)
    torch.testing.assert_close(gradient, leaf.grad, rtol=0, atol=0)


def test_powers_of_the_forward_stay() -> None:
    def powers(x: Tensor) -> Tensor:
        return x.pow(1.0).sin() * torch.arange(3).pow(1.0)

    x, c = torch.randn(4, 3, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64)
    leaf = x.clone().requires_grad_()
    want = powers(leaf)
    want.backward(c)
    one = call(powers, (4, 3))
    assert [n.target for n in trace(one).forward].count(torch.ops.aten.pow.Tensor_Scalar) == 2
    made, (gradient,) = run(one, [x], [c])
    torch.testing.assert_close(made, want.detach(), rtol=0, atol=0)
    torch.testing.assert_close(gradient, leaf.grad, rtol=0, atol=0)
