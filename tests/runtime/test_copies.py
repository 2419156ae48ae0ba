"""What a model copies has memory of its own: optimizers, loops and the call may write the rest."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils.checkpoint import checkpoint

import shardlang
from shardlang.api import Program
from shardlang.compiler.driver import CompileError
from shardlang.runtime.written import write_all

SPEC = "mesh { d = 1 }\ninput x : f64[6, 4] [d, _]\nloss loss\n"


class Keeping(nn.Module):
    """Keeps what was there before: statistics, weights, inputs; and returns copies."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.scale = nn.Linear(4, 4), nn.Parameter(torch.arange(1.0, 5))
        for name, shape in {"mean": 4, "before": 4, "copied": 4, "last": (6, 4)}.items():
            self.register_buffer(name, torch.zeros(shape))
        self.register_buffer("anchor", torch.zeros(4, 4))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Shape `b h`."""
        old = self.mean.clone()
        self.before = self.mean.clone()
        self.copied.copy_(self.mean)
        y = (self.layer(x.clone()) * old).clone()
        with torch.no_grad():
            self.mean.mul_(0.9).add_(x.mean(0))
        loss = y.square().mean() + (self.layer.weight - self.anchor).square().sum()
        self.anchor, self.last = self.layer.weight.detach().clone(), x.clone()
        copies = {"y1": y * 1, "y2": y / 1, "x1": x.to(x.dtype, copy=True), "scale": self.scale * 1}
        down = torch.div(y, 1, rounding_mode="floor")
        return {"loss": loss + self.scale.sum(), "y": y, "old": old, "down": down * 1, **copies}


@pytest.fixture
def program(tmp_path: Path) -> Program:
    path = tmp_path / "spec.shard"
    path.write_text(SPEC)
    return shardlang.compile(path, model=lambda: Keeping().double())


def test_what_is_written_later_changes_no_copy(program: Program) -> None:
    assert program.verify().ok
    module, plain = program.load(), Keeping().double()
    plain.load_state_dict(module.state_dict())
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.1) for model in (module, plain)]
    for step in range(3):
        batch = torch.linspace(-2, 3, 24, dtype=torch.float64).add(step).sin().view(6, 4)
        given = batch.clone(), batch.clone()
        outputs = module(**module.shard_inputs(x=given[0])), plain(given[1])
        for made in outputs:
            made["loss"].backward()
            for name in ("y1", "y2", "x1", "scale"):
                made[name].detach().mul_(7)
        for name, want in outputs[1].items():
            torch.testing.assert_close(outputs[0][name], want, rtol=0, atol=1e-12)
        torch.testing.assert_close(*given, rtol=0, atol=0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        for x in given:
            x.zero_()
        for name, want in plain.state_dict().items():
            torch.testing.assert_close(module.state_dict()[name], want, rtol=0, atol=1e-12)


def test_copies_that_no_result_needs_are_dropped(program: Program) -> None:
    """Of an operand, and of what lies in no leaf and is one result alone."""
    made = [node.target for node in program.compiled.program.graph.nodes]
    assert made.count(torch.ops.aten.clone.default) == 9


def test_tensors_that_are_swapped_are_read_first() -> None:
    one, other = torch.arange(3.0), torch.arange(3.0) * 5
    write_all([(one, other), (other, one)])
    assert (one.tolist(), other.tolist()) == ([0, 5, 10], [0, 1, 2])


OUTPUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "itself": lambda x: x,
    "view": lambda x: x.view(-1),
    "transposed": lambda x: x.t(),
    "slice": lambda x: x[1:],
    "detached": lambda x: x.detach(),
    "same type": lambda x: x.to(x.dtype),
    "contiguous": lambda x: x.contiguous(),
    "expanded": lambda x: x.expand(2, 4, 4),
    "broadcast": lambda x: torch.broadcast_tensors(x, torch.zeros(1, dtype=x.dtype))[0],
    "grid": lambda x: torch.meshgrid(x[0], x[:2, 1], indexing="xy")[1],
    "clone": lambda x: x.clone(),
    "clone of a view": lambda x: x.view(-1).clone().view(4, 4),
    "times one": lambda x: x * 1,
    "into empty memory": lambda x: torch.empty_like(x).copy_(x),
    "into zeros": lambda x: torch.zeros(4, 4, dtype=x.dtype).copy_(x),
    "into a larger one": lambda x: torch.empty(2, 4, 4, dtype=x.dtype).copy_(x)[1],
    "by items": lambda x: _by_items(x),
    "rolled by nothing": lambda x: torch.roll(x, 0, 0),
    "rolled around": lambda x: torch.roll(x, (4, 8), (0, 1)),
    "flipped": lambda x: x[:1].flip(0),
    "copied view": lambda x: torch.view_copy(x, (4, 4)),
    "copied slice": lambda x: torch.slice_copy(x, 0, 0, 4),
    "copied expansion": lambda x: torch.expand_copy(x, (2, 4, 4)),
    "clone of a broadcast": lambda x: torch.broadcast_tensors(x, x[:1])[0].clone(),
    "repeated": lambda x: x.repeat(1, 1),
    "reshaped": lambda x: x.t().reshape(-1),
    "joined": lambda x: torch.cat([x]),
}


def _by_items(x: Tensor) -> Tensor:
    made = torch.zeros_like(x)
    made[...] = x
    return made


class Given(nn.Module):
    """Gives a parameter, a buffer that it writes, one that it does not, and an input, in one way.

    One way is a function of a tensor of shape `4 4`.
    """

    def __init__(self, way: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.way, self.weight = way, nn.Parameter(torch.randn(4, 4))
        for name in ("kept", "written", "swapped", "other", "last"):
            self.register_buffer(name, torch.randn(4, 4))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Shape `4 4`."""
        given = {"weight": self.weight, "kept": self.kept, "x": x, "y": self.weight * x}
        found = {name: self.way(one) for name, one in given.items()}
        found |= {"before": self.way(self.written), "y again": given["y"]}
        self.swapped, self.other, self.last = self.other, self.swapped, self.written
        self.written = self.written * 0.5
        return {**found, "loss": found["before"].sum() + (given["y"] * self.swapped).sum()}


@pytest.mark.parametrize("name", OUTPUTS)
def test_a_result_lies_where_that_of_the_model_lies(name: str, tmp_path: Path) -> None:
    """In the memory of the same leaf and with the same results; and what it is stays."""
    path = tmp_path / "spec.shard"
    path.write_text("mesh { d = 1 }\ninput x : f64[4, 4] [_, _]\nloss loss\n")
    made = shardlang.compile(path, model=lambda: Given(OUTPUTS[name]).double())
    module, plain = made.load(), Given(OUTPUTS[name]).double()
    plain.load_state_dict(module.state_dict())
    seen = []
    for model in (module, plain):
        x, tensors = torch.arange(16.0, dtype=torch.float64).view(4, 4), dict(model.named_buffers())
        given = {"x": x, "weight": model.weight, "kept": tensors["kept"]}
        found = model(**(module.shard_inputs(x=x) if model is module else {"x": x}))
        places = [*given.values(), *found.values()]
        first = [next(i for i, one in enumerate(places) if _share(one, x)) for x in found.values()]
        before = {n: one.detach().clone() for n, one in found.items() if n not in given}
        model(**(module.shard_inputs(x=x) if model is module else {"x": x}))
        seen.append((first, found, dict(model.named_buffers()), before))
    (mine, *_), (theirs, *_) = seen
    assert mine == theirs
    for (_, found, buffers, before), other in zip(seen, reversed(seen), strict=True):
        torch.testing.assert_close(found, other[1], rtol=0, atol=1e-12)
        torch.testing.assert_close(buffers, other[2], rtol=0, atol=1e-12)
        for n, one in before.items():
            torch.testing.assert_close(found[n].detach(), one, rtol=0, atol=0)


def _share(one: Tensor, other: Tensor) -> bool:
    return _storage(one) == _storage(other)


def _storage(x: Tensor) -> int:
    return (x.to_local() if isinstance(x, DTensor) else x).untyped_storage().data_ptr()


class Means(nn.Module):
    """The same sums in two shapes: one is made of the other."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Shape `6 4`."""
        made, kept = (x * self.weight).sum(1), (x * self.weight).sum(1, keepdim=True)
        return {"made": made, "kept": kept, "loss": (made * kept[:, 0]).sum()}


def test_a_result_that_is_made_of_another_lies_apart(tmp_path: Path) -> None:
    path = tmp_path / "spec.shard"
    path.write_text(SPEC)
    program = shardlang.compile(path, model=lambda: Means().double())
    assert program.verify().ok
    module = program.load()
    found = module(**module.shard_inputs(x=torch.randn(6, 4, dtype=torch.float64)))
    want = found["kept"].detach().clone()
    found["made"].detach().zero_()
    torch.testing.assert_close(found["kept"].detach(), want, rtol=0, atol=0)


class Literals(nn.Module):
    """Gives tensors written in its forward, and puts one in the place of a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.table = nn.Linear(4, 4), torch.arange(1.0, 5, dtype=torch.float64)
        for name in ("state", "tabled", "read"):
            self.register_buffer(name, torch.ones(4))

    def part(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Shape `6 4`, computed again in the backward."""
        inner = torch.tensor([3.0, 1, 4, 1])
        return x * inner.to(x.dtype), inner

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Shape `6 4`."""
        given, index = torch.tensor([1.0, 2, 3, 4]), torch.tensor([0, 2, 1, 3])
        y = self.layer(x) * given.to(x.dtype) * self.state + self.read
        z, inner = checkpoint(self.part, y, use_reentrant=False)
        self.state = torch.tensor([2.0, 1, 2, 1], dtype=x.dtype)
        self.tabled, self.read = self.table, given.to(x.dtype)
        results = {"given": given, "again": given, "row": given[1:], "inner": inner, "index": index}
        return {"loss": z[:, index].sin().mean(), **results}


@pytest.mark.parametrize("store", ["", 'store "**" over d'])
def test_a_literal_is_made_anew_at_every_call(store: str, tmp_path: Path) -> None:
    path = tmp_path / "spec.shard"
    path.write_text(SPEC + store)
    program = shardlang.compile(path, model=lambda: Literals().double())
    assert program.verify().ok
    module, plain = program.load(), Literals().double()
    plain.load_state_dict(module.state_dict())
    for step in range(3):
        x = torch.linspace(-2, 3, 24, dtype=torch.float64).add(step).sin().view(6, 4)
        found, want = module(**module.shard_inputs(x=x)), plain(x)
        for name, value in want.items():
            torch.testing.assert_close(found[name], value)
        assert found["given"].data_ptr() == found["again"].data_ptr()
        for results in (found, want):
            for name in ("given", "inner", "index"):
                results[name].zero_()
        for model in (module, plain):
            model.get_buffer("state").mul_(step)


class Shared(nn.Module):
    """One part under two names, which replaces its buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.one = self.other = Keeping()

    def forward(self, x: Tensor) -> Tensor:
        """Shape `6 4`."""
        return self.other(x)["loss"]


def test_storage_finds_a_part_under_two_names_with_a_replaced_buffer(tmp_path: Path) -> None:
    path = tmp_path / "spec.shard"
    path.write_text(SPEC.replace("loss loss", 'store "**" over d').replace("d = 1", "d = 2"))
    assert shardlang.compile(path, model=lambda: Shared().double()).verify().ok


class Statistics(nn.Module):
    """An instance norm that keeps statistics; or a buffer that is written behind a trace's back."""

    def __init__(self, hidden: bool, norm: type[nn.Module] = nn.InstanceNorm1d) -> None:
        super().__init__()
        self.norm, self.hidden = norm(4, affine=True, track_running_stats=True), hidden
        self.register_buffer("seen", torch.ones(4))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Shape `6 4 5`."""
        if self.hidden and not torch.compiler.is_compiling():
            self.seen.mul_(2)
        made = self.norm(x) * self.seen[:, None]
        return {"loss": (made + self.norm.running_mean[:, None]).square().mean()}


class ByName(nn.BatchNorm1d):
    """A batch norm that calls the op by its name."""

    def forward(self, x: Tensor) -> Tensor:
        """Shape `n 4 l`."""
        ours = self.weight, self.bias, self.running_mean, self.running_var
        return torch.native_batch_norm(x, *ours, self.training, 0.1, 1e-5)[0]


STATISTICS = "mesh { d = 2 }\ninput x : f64[6, 4, 5] [d, _, _]\nloss loss\n"


@pytest.mark.parametrize("norm", [nn.InstanceNorm1d, ByName])
def test_a_norm_keeps_its_statistics(norm: type[nn.Module], tmp_path: Path) -> None:
    path = tmp_path / "spec.shard"
    path.write_text(STATISTICS)
    assert shardlang.compile(path, model=lambda: Statistics(False, norm).double()).verify().ok
    path.write_text(STATISTICS.replace("d = 2", "d = 1"))
    module, plain = (
        shardlang.compile(path, model=lambda: Statistics(False, norm).double()).load(),
        Statistics(False, norm).double(),
    )
    plain.load_state_dict(module.state_dict())
    for step in range(3):
        x = torch.randn(6, 4, 5, dtype=torch.float64) * 2 + step
        found, want = module(**module.shard_inputs(x=x)), plain(x)
        torch.testing.assert_close(found["loss"].detach(), want["loss"].detach())
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(module.state_dict()[name], value, rtol=1e-12, atol=1e-12)
    module.eval(), plain.eval()
    assert module(**module.shard_inputs(x=x))["loss"].item() == pytest.approx(
        plain(x)["loss"].item(), rel=1e-12
    )


def test_a_buffer_that_changes_unseen_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "spec.shard"
    path.write_text(STATISTICS)
    program = shardlang.compile(path, model=lambda: Statistics(True).double())
    with pytest.raises(CompileError, match="changes the buffer `seen` where tracing"):
        program.verify()


class Rebinding(nn.Module):
    """Puts a buffer where something else lies."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way, self.layer = way, nn.Linear(4, 4)
        for name in ("a", "b", "anchor"):
            self.register_buffer(name, torch.zeros(4, 4))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Shape `6 4`."""
        loss = (self.layer(x) @ self.a + x @ self.b).square().mean()
        if self.way == "parameter":
            self.anchor = self.layer.weight.detach()
        elif self.way == "changed":
            self.a.mul_(0.5)
            self.b = self.a
        else:
            self.b = self.a
            self.a = self.a * 0.5
        return {"loss": loss + (self.anchor - self.layer.weight).square().sum()}


def test_a_buffer_in_memory_that_changes_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "spec.shard"
    path.write_text(SPEC)
    for way, where in ("parameter", "parameter `layer.weight`"), ("changed", "buffer `a`, which"):
        with pytest.raises(CompileError, match=f"into the memory of the {where}"):
            shardlang.compile(path, model=lambda way=way: Rebinding(way).double())
    assert shardlang.compile(path, model=lambda: Rebinding("old").double()).verify().ok
