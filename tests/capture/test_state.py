"""What a forward does beside its operators: remarked where later steps may depend on it."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn

from shardlang.capture import CallableSource, InputSpec, capture, materialize, run_graph

X = InputSpec("x", torch.float32, (7, 5))
Body = Callable[[Any, Tensor], Tensor]


def built(body: Body) -> Callable[[], nn.Module]:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up = nn.Linear(5, 3)
            self.steps, self.last, self.seen = 0, None, []
            self.ready = False

        def forward(self, x: Tensor) -> Tensor:
            return body(self, x)

    return Model


def counts(self: Any, x: Tensor) -> Tensor:
    self.steps += 1
    return self.up(x).sum() * self.steps


def keeps(self: Any, x: Tensor) -> Tensor:
    self.last = x.detach() if self.last is None else self.last + x.detach()
    return self.up(self.last).sum()


def appends(self: Any, x: Tensor) -> Tensor:
    self.seen.append(len(self.seen))
    return self.up(x).sum()


def draws(self: Any, x: Tensor) -> Tensor:
    return self.up(x).sum() * random.random()


def draws_by_numpy(self: Any, x: Tensor) -> Tensor:
    return self.up(x).sum() * float(numpy.random.rand())


def sets_up_once(self: Any, x: Tensor) -> Tensor:
    self.ready, self.steps = True, x.shape[0]
    return self.up(x).sum()


def prints(self: Any, x: Tensor) -> Tensor:
    print("forward of", x)
    return self.up(x).sum()


@pytest.mark.parametrize(
    ("body", "what"),
    [
        (counts, "attribute `steps`"),
        (keeps, "attribute `last`"),
        (appends, "attribute `seen`"),
        (draws, "from `random`"),
        (draws_by_numpy, "from `numpy.random`"),
    ],
)
def test_state_is_remarked(body: Body, what: str) -> None:
    (remark,) = capture(CallableSource(built(body)), [X]).remarks
    assert remark.code == "SH0361"
    assert what in remark.message


@pytest.mark.parametrize("body", [sets_up_once, prints])
def test_what_a_second_forward_does_not_change_is_not(body: Body) -> None:
    assert capture(CallableSource(built(body)), [X]).remarks == ()


def test_what_the_model_prints_is_no_result(capfd: pytest.CaptureFixture[str]) -> None:
    source = CallableSource(built(prints))
    capture(source, [X])
    assert capfd.readouterr() == ("", "")
    source.call(source.build(), {"x": torch.ones(2, 5)})
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("forward of tensor")


class Cube(torch.autograd.Function):
    """A backward of its own that is the derivative."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.scale = scale
        return scale * x**3

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (x,) = ctx.saved_tensors
        return grads[0] * 3 * ctx.scale * x**2, None


class Swish(torch.autograd.Function):
    """The same in the newer form."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x * x.sigmoid()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (x,) = ctx.saved_tensors
        s = x.sigmoid()
        return grads[0] * (s + x * s * (1 - s))


def cubes(self: Any, x: Tensor) -> Tensor:
    made: Tensor = Cube.apply(self.up(x), 0.5)  # type: ignore[no-untyped-call]
    return made.sum() + self.up(x).sum()


def swishes(self: Any, x: Tensor) -> Tensor:
    made: Tensor = Swish.apply(self.up(x))  # type: ignore[no-untyped-call]
    return made.sum()


@pytest.mark.parametrize("body", [cubes, swishes])
def test_a_backward_that_is_the_derivative_is_traced(body: Body) -> None:
    source = CallableSource(built(body))
    captured = capture(source, [X])
    x = torch.linspace(-2, 2, 35).view(7, 5)
    values = {name: v.requires_grad_() for name, v in materialize(source, 0).items()}
    run_graph(captured, {**values, "x": x})[0].backward()
    plain = source.build()
    plain.load_state_dict({name: v.detach() for name, v in values.items()})
    plain(x).backward()
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(values[name].grad, parameter.grad)
