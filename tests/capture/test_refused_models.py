"""Models that a program would follow wrongly: refused with one message, at the right line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import shardlang
from shardlang.api import CompileError
from shardlang.capture import CallableSource, CaptureError, InputSpec, capture
from shardlang.runtime.errors import RunError
from shardlang.runtime.trainer.plain import PlainTrainee
from shardlang.runtime.trainer.recipe import Recipe
from shardlang.runtime.trainer.trainer import Trainer


class Net(nn.Module):
    """Two matrices, and what a test does in the constructor and in the forward."""

    def __init__(
        self, make: Callable[[Net], object] | None, use: Callable[[Net, Tensor], object] | None
    ) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
        self.use = use
        if make is not None:
            make(self)

    def forward(self, x: Tensor) -> Tensor:
        if self.use is not None:
            self.use(self, x)
        return self.b(torch.tanh(self.a(x))).mean()


def tied_by_data(net: Net) -> None:
    net.b.weight.data = net.a.weight.data


def row_of_another(net: Net) -> None:
    net.b.bias = nn.Parameter(net.a.weight.detach()[2])


def shadow(net: Net) -> None:
    net.register_buffer("average", net.a.weight.detach().t())


def real_parts(net: Net) -> None:
    net.spectrum = nn.Parameter(torch.randn(4, dtype=torch.complex64))
    net.register_buffer("parts", torch.view_as_real(net.spectrum.detach())[:, 0])


def columns_of_one(net: Net) -> None:
    both = torch.randn(4, 8)
    net.a.weight, net.b.weight = nn.Parameter(both[:, :4]), nn.Parameter(both[:, 4:])


def traced(
    make: Callable[[Net], object] | None, use: Callable[[Net, Tensor], object] | None = None
) -> None:
    capture(CallableSource(lambda: Net(make, use)), [InputSpec("x", torch.float32, (3, 4))])


@pytest.mark.parametrize("make", [tied_by_data, row_of_another, shadow])
def test_a_parameter_that_shares_memory_is_refused(make: Callable[[Net], object]) -> None:
    """A step would write both of them in the plain model, and one of them in the program."""
    with pytest.raises(CaptureError, match=r"^the parameter `a.weight` shares memory with `") as e:
        traced(make)
    assert e.value.code == "SH0356"


def test_tensors_of_two_dtypes_in_one_memory_are_refused() -> None:
    with pytest.raises(CaptureError, match=r"^the parameter `spectrum` shares memory with `parts`"):
        traced(real_parts)


class Counting(nn.Module):
    """Counts in a buffer, and reads what a test puts beside it."""

    def __init__(self, make: Callable[[Counting], object], numpy: bool = False) -> None:
        super().__init__()
        self.lin = nn.Linear(4, 4)
        start = torch.from_numpy(np.random.rand(4).astype("f4")) if numpy else torch.zeros(4)
        self.register_buffer("count", start)
        self.register_buffer("fixed", torch.ones(4))
        self.register_buffer("passing", torch.ones(4), persistent=False)
        self.part = nn.Module()
        self.part.seen = make(self)

    def forward(self, x: Tensor) -> Tensor:
        self.count += x.detach().sum(0)
        seen = self.part.seen[0] if isinstance(self.part.seen, list) else self.part.seen
        return (self.lin(x) * seen.sum()).mean()


def counting(make: Callable[[Counting], object], numpy: bool = False) -> None:
    capture(CallableSource(lambda: Counting(make, numpy)), [InputSpec("x", torch.float32, (3, 4))])


def other_buffer(net: Counting) -> Tensor:
    net.register_buffer("last", net.count[3:])
    return net.last


@pytest.mark.parametrize(
    ("make", "what", "whose"),
    [
        (lambda net: net.count, "attribute `part.seen`", "buffer `count`, which the forward"),
        (lambda net: net.count.view(2, 2), "attribute `part.seen`", "buffer `count`, which"),
        (lambda net: [net.count.data], "attribute `part.seen.0`", "buffer `count`, which"),
        (lambda net: net.count.view(torch.int32), "attribute `part.seen`", "buffer `count`, which"),
        (other_buffer, "buffer `last`", "buffer `count`, which the forward writes"),
        (lambda net: net.fixed, "attribute `part.seen`", "buffer `fixed`"),
        (lambda net: net.lin.bias.data, "attribute `part.seen`", "parameter `lin.bias`"),
        (lambda net: net.lin.weight[1], "attribute `part.seen`", "parameter `lin.weight`"),
    ],
)
def test_what_lies_in_memory_that_changes_is_refused(
    make: Callable[[Counting], object], what: str, whose: str
) -> None:
    """In the plain model it changes too; the program would read what it was."""
    for numpy in (False, True):
        with pytest.raises(CaptureError, match=f"^the {what} shares memory with the {whose}") as e:
            counting(make, numpy)
        assert e.value.code == "SH0356" and ".clone()" in str(e.value.help)


def test_memory_that_does_not_change_may_be_shared() -> None:
    """Such as the first frequencies of a rotary embedding that may grow."""
    counting(lambda net: net.passing)
    counting(lambda net: net.lin.bias)
    counting(lambda net: net.count.clone())
    counting(lambda net: torch.stack([net.fixed, net.fixed])[0])


def test_parts_of_one_tensor_and_tied_parameters_are_taken() -> None:
    traced(columns_of_one)
    traced(lambda net: setattr(net.b, "weight", net.a.weight))


@pytest.mark.parametrize(
    "use",
    [
        lambda net, x: net.a.requires_grad_(False),
        lambda net, x: setattr(net.a.weight, "requires_grad", False),
    ],
)
def test_a_forward_that_freezes_is_refused(use: Callable[[Net, Tensor], object]) -> None:
    with pytest.raises(CaptureError, match=r"the parameter `a.weight` gets a gradient") as e:
        traced(None, use)
    assert e.value.code == "SH0358"


def test_a_forward_that_draws_truncated_numbers_is_refused() -> None:
    with pytest.raises(CaptureError, match=r"test_refused_models.py:.*draws with `trunc_norm") as e:
        traced(None, lambda net, x: nn.init.trunc_normal_(torch.empty_like(x)))
    assert e.value.code == "SH0358" and "clamp" in e.value.help


def test_a_failing_forward_shows_the_lines_that_led_there(tmp_path: Path) -> None:
    (tmp_path / "a.shard").write_text("mesh { dp = 1 }\ninput x : f32[3, 4] [dp, _]\n")
    with pytest.raises(CompileError) as caught:
        shardlang.compile(
            tmp_path / "a.shard", model=lambda: Net(None, lambda net, x: x @ torch.ones(3))
        )
    (found,) = caught.value.diagnostics
    assert found.code == "SH0355"
    assert [
        line.split(", ")[2] for line in "\n".join(found.notes).splitlines() if "  File " in line
    ] == ["in forward", "in <lambda>"]


def test_a_batch_that_is_no_dict_is_refused() -> None:
    plain = PlainTrainee(nn.Linear(2, 1), lambda module, batch: module(batch["x"]).mean())
    with pytest.raises(RunError, match=r"a batch is a dict .* this one is a `list`") as caught:
        next(Trainer(plain, [[torch.ones(2)]], Recipe(1)).steps(1))  # type: ignore[list-item]
    assert caught.value.code == "SH0605"


class Scaled(nn.Module):
    """A matrix behind a table that keeps its type."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.rand(4) + 0.5)
        self.lin = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.lin(x * self.table).sum()


def test_a_product_of_two_types_is_refused() -> None:
    """Fake tensors let it pass; the op itself does not."""
    source = CallableSource(Scaled)
    capture(source, [InputSpec("x", torch.float32, (3, 4))])
    with pytest.raises(CaptureError, match=r"`linear` is given f32 and bf16, and takes") as e:
        capture(source.computing(torch.bfloat16), [InputSpec("x", torch.float32, (3, 4))])
    assert e.value.code == "SH0355" and "what is made of `table`" in str(e.value.help)
    with pytest.raises(CaptureError, match=r"`linear` is given f64 and f32, and takes one type"):
        capture(CallableSource(Scaled), [InputSpec("x", torch.float64, (3, 4))])


class CastsItself(nn.Module):
    """A matrix in f64, and a cast to it, which a narrower `compute` undoes for the matrix alone."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.rand(4))
        self.lin = nn.Linear(4, 2).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.lin((x * self.table).double()).sum()


def test_a_cast_of_the_model_beside_a_narrower_weight_is_named() -> None:
    """No buffer stands in the way: its table is cast with the rest."""
    source = CallableSource(CastsItself).computing(torch.bfloat16)
    with pytest.raises(CaptureError, match=r"`linear` is given f64 and bf16") as e:
        capture(source, [InputSpec("x", torch.float32, (3, 4))])
    assert "buffer" not in str(e.value.help) and "what the model casts" in str(e.value.help)
