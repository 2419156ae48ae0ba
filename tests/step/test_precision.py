"""The types that a spec states, in numbers: those of the plain model with the same casts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, fx, nn
from torch.func import functional_call

import shardlang
from shardlang.api import Program
from shardlang.compiler.accumulate import accumulated
from shardlang.compiler.driver import CompileError
from shardlang.ir.shards import shard_of
from shardlang.ir.step import StepProgram, cast, collectives_of, is_collective
from shardlang.passes.invariants.invariant import InvariantError
from shardlang.passes.step import backward
from shardlang.passes.step.check_step import check_step
from shardlang.passes.step.write_step import write_accumulated, write_step
from shardlang.plan.collect import plan_of
from shardlang.runtime.simulate_accumulated import AccumulatedSimulator
from shardlang.runtime.simulate_step import StepSimulator
from shardlang.runtime.update import DeviceUpdate, Part, clip, squared_norm

ROWS = 14
PARAMS = ("up.weight", "up.bias", "down.weight")


class Narrow(nn.Module):
    """Parameters in bf16; the loss is made in f32, a sum over the rows."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.up, self.down = nn.Linear(9, 7), nn.Linear(7, 5, bias=False)
        self.bfloat16()

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"loss": self.down(torch.tanh(self.up(x))).float().square().sum() / ROWS}


def program(folder: Path, *lines: str, devices: int = 4) -> Program:
    path = folder / "spec.shard"
    head = (f"mesh {{ dp = {devices} }}", f"input x : bf16[{ROWS}, 9] [dp, _]")
    path.write_text("\n".join((*head, *lines, "")))
    return shardlang.compile(path, model=Narrow)


def rows() -> Tensor:
    """Rows of which the later ones count for more, so that a narrow sum loses the first."""
    drawn = torch.randn(ROWS, 9, generator=torch.Generator().manual_seed(3))
    return (drawn * torch.linspace(0.2, 3, ROWS)[:, None]).bfloat16()


def gradients(x: Tensor) -> list[Tensor]:
    """Those of the plain model from some rows."""
    model = Narrow()
    model(x)["loss"].backward()
    return [p.grad for p in model.parameters() if p.grad is not None]


def summed(parts: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """The gradients of parts of the rows, added up in a type, and rounded once."""
    each = [gradients(part) for part in parts]
    return [sum(x.to(dtype) for x in one).bfloat16() for one in zip(*each, strict=True)]


def simulated(made: Program) -> list[list[Tensor]]:
    """The gradients on every device, by the very step program at its own types."""
    step = write_step(made.local, PARAMS, ["loss"])
    sim, held = StepSimulator(step), {**dict(Narrow().named_parameters()), "x": rows()}
    leaves = {leaf.name: sim.place(held[leaf.name], leaf.at_rest) for leaf in step.leaves}
    _, found = sim.run(leaves, {"loss": [torch.ones(()) for _ in sim.coords]})
    return [list(one) for one in zip(*found.values(), strict=True)]


STORES = ("", 'store gradients "**" over dp', 'store "**" over dp')


@pytest.mark.parametrize("store", STORES)
def test_gradients_are_reduced_in_the_stated_type(tmp_path: Path, store: str) -> None:
    """Those of the plain model on each device's rows, added up in f32 and rounded once."""
    made = program(tmp_path, "precision { reduce = f32 }", store)
    parts = list(rows().split([4, 4, 3, 3]))
    want, narrow = summed(parts, torch.float32), summed(parts, torch.bfloat16)
    assert not all(torch.equal(a, b) for a, b in zip(want, narrow, strict=True))
    layouts = {leaf.name: leaf.layout for leaf in made.local.leaves}
    for found, at in zip(simulated(made), made.local.mesh.coords(), strict=True):
        for name, mine, whole in zip(PARAMS, found, want, strict=True):
            assert torch.equal(mine, shard_of(whole, layouts[name], at))


def test_one_device_reduces_nothing(tmp_path: Path) -> None:
    made = program(tmp_path, "precision { reduce = f32 }", devices=1)
    (found,) = simulated(made)
    assert all(torch.equal(a, b) for a, b in zip(found, gradients(rows()), strict=True))
    assert made.verify().ok


@pytest.mark.parametrize("store", STORES)
def test_the_sums_of_microbatches_have_it_too(tmp_path: Path, store: str) -> None:
    """Sums over devices and microbatches are made in f32, whichever comes first."""
    made = accumulated(
        program(tmp_path, "precision { reduce = f32 }", store, "accumulate 3", devices=2).compiled
    ).program
    sim = AccumulatedSimulator(write_accumulated(made, PARAMS))
    held = {**dict(Narrow().named_parameters()), "x": rows()}
    leaves = [
        {
            leaf.name: [
                shard_of(held[leaf.name], leaf.at_rest, at).detach() for at in mesh.coords()
            ]
            for leaf in made.leaves
        }
        for mesh in sim.meshes
    ]
    found = sim.run(leaves).gradients
    parts = [x for piece in leaves for x in piece["x"]]
    want, narrow = summed(parts, torch.float32), summed(parts, torch.bfloat16)
    layouts = {leaf.name: leaf.layout for leaf in made.leaves}
    gaps = [0.0, 0.0]
    for name, *sums in zip(PARAMS, want, narrow, strict=True):
        for mine, at in zip(found[name], sim.meshes[0].coords(), strict=True):
            assert mine.dtype is torch.bfloat16
            for i, whole in enumerate(sums):
                gaps[i] += float((mine - shard_of(whole, layouts[name], at)).abs().sum())
    assert gaps[0] < 0.1 * gaps[1]


@pytest.mark.parametrize("store", STORES)
def test_what_is_reduced_is_priced_in_its_type(tmp_path: Path, store: str) -> None:
    """Twice the bytes, in a step of one microbatch and of several; gathers as before."""
    for more in ("", "accumulate 2"):
        sent = {
            stated: [
                (row.op, row.phase, row.bytes)
                for row in plan_of(program(tmp_path, stated, store, more).compiled).collectives
            ]
            for stated in ("", "precision { reduce = f32 }")
        }
        pairs = list(zip(*sent.values(), strict=True))
        assert any(phase == "backward" for (_, phase, _), _ in pairs)
        for (op, phase, bytes_), wide in pairs:
            assert wide == (op, phase, bytes_ * (2 if phase == "backward" else 1))


def uncast(step: StepProgram) -> None:
    """Let a reduction take what a cast was made of."""
    sends = (n for n in step.graph.nodes if is_collective(n))
    given = (x for n in sends for x, _ in collectives_of(n) if x.target is cast)
    node: fx.Node = next(given)
    source = node.args[0]
    assert isinstance(source, fx.Node)
    node.replace_all_uses_with(source)


def test_a_narrow_reduction_is_found(tmp_path: Path) -> None:
    made = program(tmp_path, "precision { reduce = f32 }")
    step = write_step(made.local, PARAMS, ["loss"])
    uncast(step)
    with pytest.raises(InvariantError, match="sums_wide"):
        check_step(step, "planting")


@pytest.mark.parametrize("key", ["reduce", "master"])
def test_no_type_is_narrower_than_a_parameter(tmp_path: Path, key: str) -> None:
    path = tmp_path / "spec.shard"
    path.write_text(
        f"mesh {{ dp = 2 }}\ninput x : f64[8, 9] [dp, _]\nprecision {{ {key} = f32 }}\n"
    )
    with pytest.raises(CompileError) as raised:
        shardlang.compile(path, model=lambda: Narrow().double())
    (found,) = raised.value.diagnostics
    assert (found.code, found.span.line) == ("SH0243", 3)
    assert found.message == f"`up.weight` is f64, wider than `{key} = f32`"


class Half(nn.Module):
    """Parameters in f16; small factors let gradients vanish that are not scaled."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.up, self.down = nn.Linear(9, 7), nn.Linear(7, 5, bias=False)
        self.half()

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y = self.down(torch.tanh(self.up(x)))
        return {"loss": y.float().square().sum() * 1e-6}


def half(folder: Path, *lines: str, model: type[nn.Module] = Half) -> Program:
    path = folder / "half.shard"
    dtype = "bf16" if model is Narrow else "f16"
    head = ("mesh { dp = 2 tp = 2 }", f"input x : {dtype}[{ROWS}, 9] [dp, _]")
    split = 'param "up.*" [tp, ...] param "down.weight" [_, tp]'
    path.write_text("\n".join((*head, split, "optimizer adamw(lr = 0.1, clip = 0.2)", *lines, "")))
    return shardlang.compile(path, model=model)


SCALED = "precision { master = f32 loss_scale = dynamic }"
STORED = 'store optimizer "**" over dp'


@pytest.mark.parametrize(
    ("model", "stated", "code", "severity"),
    [
        (Half, "", "SH0244", "warning"),
        (Half, "precision { loss_scale = dynamic }", "SH0243", "error"),
        (Narrow, SCALED, "SH0243", "error"),
        (Half, "precision { loss_scale = 0 }", "SH0243", "error"),
    ],
)
def test_a_scale_fits_the_model(
    tmp_path: Path, model: type[nn.Module], stated: str, code: str, severity: str
) -> None:
    try:
        found = half(tmp_path, stated, model=model).diagnostics
    except CompileError as error:
        found = error.diagnostics
    assert [(one.code, one.severity) for one in found] == [(code, severity)]
    assert found[0].help


def _alone(self: DeviceUpdate, norm: Tensor) -> bool:
    return bool(self.squares().isfinite())


def _unscaled_late(self: Part, given: Tensor, scale: float = 1.0) -> Tensor:
    return of_gradient(self, given)


of_gradient = Part.of_gradient


@pytest.mark.parametrize("store", ["", STORED])
def test_faults_of_a_scaled_loss_are_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store: str
) -> None:
    """A device that steps or skips by its own gradients alone, and a scale that is not undone."""
    made = half(tmp_path, SCALED, store)
    assert made.diagnostics == []
    assert made.verify().ok
    for owner, name, fault in (
        (DeviceUpdate, "may_step", _alone),
        (Part, "of_gradient", _unscaled_late),
    ):
        with monkeypatch.context() as planted:
            planted.setattr(owner, name, fault)
            report = made.verify()
        assert not report.ok and report.updates and max(report.updates.values()) > 1e-6, name


def test_the_norm_of_a_scaled_step_is_priced(tmp_path: Path) -> None:
    """All devices learn whether all gradients are finite: one number, as for clipping."""
    path = tmp_path / "norm.shard"
    head = f"mesh {{ dp = 2 }}\ninput x : f16[{ROWS}, 9] [dp, _]\n"
    path.write_text(f"{head}{SCALED}\n")
    rows_ = plan_of(shardlang.compile(path, model=Half).compiled).collectives
    (norm,) = [row for row in rows_ if row.phase == "update"]
    assert (norm.op, norm.bytes) == ("all_reduce", 8)
    assert norm.reason.startswith("all devices step, or none")


class Wide(Narrow):
    """The same in f32, with a buffer whose type counts."""

    def __init__(self) -> None:
        super().__init__()
        self.float()
        self.angles: Tensor
        self.register_buffer("angles", torch.linspace(0.1, 3.1, 7))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y = torch.tanh(self.up(x))
        assert (y.dtype, self.angles.dtype) == (torch.bfloat16, torch.float32)
        turned = (y * self.angles.sin()).to(y.dtype)
        return {"loss": self.down(turned).float().square().sum() / ROWS}


def wide(folder: Path, *lines: str) -> Program:
    path = folder / "wide.shard"
    head = ("mesh { dp = 4 }", f"input x : f32[{ROWS}, 9] [dp, _]")
    path.write_text("\n".join((*head, *lines, "")))
    return shardlang.compile(path, model=Wide)


def cast_gradients(x: Tensor) -> list[Tensor]:
    """Those of the plain model, its parameters and input cast, before they are cast back."""
    model = Wide()
    params = {n: p.detach().bfloat16().requires_grad_() for n, p in model.named_parameters()}
    loss = functional_call(model, params, (x.bfloat16(),))["loss"]
    return list(torch.autograd.grad(loss, list(params.values())))


@pytest.mark.parametrize("store", [*STORES, 'store "**" over dp regather'])
@pytest.mark.parametrize("reduce", ["", "reduce = bf16"])
def test_a_model_computes_in_the_stated_type(tmp_path: Path, store: str, reduce: str) -> None:
    """Gradients of the plain model with the same casts, on each device's rows; buffers stay."""
    made = wide(tmp_path, f"precision {{ compute = bf16 {reduce} }}", store)
    step = write_step(made.local, PARAMS, ["loss"])
    model = Wide()
    held = {**dict(model.named_parameters()), "angles": model.angles, "x": rows().float()}
    sim = StepSimulator(step)
    leaves = {leaf.name: sim.place(held[leaf.name], leaf.at_rest) for leaf in step.leaves}
    _, found = sim.run(leaves, {"loss": [torch.ones(()) for _ in sim.coords]})
    each = [cast_gradients(part) for part in rows().float().split([4, 4, 3, 3])]
    dtype = torch.bfloat16 if reduce else torch.float32
    sums = [sum(x.to(dtype) for x in one).float() for one in zip(*each, strict=True)]
    layouts = {leaf.name: leaf.layout for leaf in made.local.leaves}
    for name, whole in zip(PARAMS, sums, strict=True):
        for mine, at in zip(found[name], sim.coords, strict=True):
            want = shard_of(whole, layouts[name], at)
            assert mine.dtype is torch.float32
            torch.testing.assert_close(
                mine, want, rtol=2e-2 if reduce else 0, atol=1e-3 if reduce else 0
            )


def test_parts_are_cast_before_they_are_gathered(tmp_path: Path) -> None:
    """Gathers carry 2 bytes for each number, gradients 4, and gathers after an update 4."""
    numbers = 3 / 4 * (9 * 8 + 8 + 8 * 5)
    sent = {}
    for store in STORES:
        plan = plan_of(wide(tmp_path, "precision { compute = bf16 }", store).compiled)
        assert plan.memory.params_bytes > 0
        for row in plan.collectives:
            if len(row.tensors) > 1:
                sent[store, row.op, str(row.phase)] = row.bytes / numbers
    assert sent == pytest.approx(
        {
            ("", "all_reduce", "backward"): 8,
            (STORES[1], "reduce_scatter", "backward"): 4,
            (STORES[1], "all_gather", "update"): 4,
            (STORES[2], "all_gather", "forward"): 2,
            (STORES[2], "reduce_scatter", "backward"): 4,
        },
        rel=0.2,
    )


def test_a_model_that_computes_in_another_type_is_proven(tmp_path: Path) -> None:
    """The model itself is called with the same casts, so that its own rounding is compared."""
    report = wide(tmp_path, "precision { compute = bf16 }", STORES[2]).verify()
    assert report.ok and report.eager is not None
    assert max(report.eager.outputs.values()) > 1e-5


class Normed(nn.Module):
    """A batch norm between layers, which takes weights in the type of its statistics alone."""

    def __init__(self, bias: bool = False) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.up, self.down = nn.Linear(9, 7, bias=bias), nn.Linear(7, 5, bias=bias)
        self.norm = nn.BatchNorm1d(7)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y = self.norm(self.up(x))
        assert y.dtype in (torch.bfloat16, torch.float16)
        return {"loss": self.down(torch.tanh(y)).float().square().sum() / ROWS}


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize(
    "stated",
    ["compute = bf16", "compute = bf16 reduce = bf16", "compute = f16 loss_scale = dynamic"],
)
def test_a_batch_norm_keeps_its_weights_beside_its_statistics(
    tmp_path: Path, stated: str, train: bool
) -> None:
    path = tmp_path / "spec.shard"
    head = "mesh { dp = 2 }", f"input x : f32[{ROWS}, 9] [dp, _]"
    path.write_text("\n".join((*head, f"precision {{ {stated} }}", STORES[2], "")))
    made = shardlang.compile(path, model=Normed().train(train))
    cast = {leaf.name for leaf in made.local.leaves if leaf.computes}
    assert cast == {"x", "up.weight", "down.weight"}
    report = made.verify()
    assert report.ok, str(report)
    assert not train or (report.typed is not None and report.typed["norm.weight"] < 1)


def test_a_gradient_that_is_nothing_but_rounding_is_held_against_it(tmp_path: Path) -> None:
    """That of a bias before a batch norm: the plain model may round it to less than devices do."""
    path = tmp_path / "spec.shard"
    head = "mesh { dp = 2 }", f"input x : f32[{ROWS}, 9] [dp, _]"
    stated = "precision { compute = f16  loss_scale = dynamic }"
    path.write_text("\n".join((*head, stated, STORES[2], "")))
    report = shardlang.compile(path, model=Normed(bias=True)).verify()
    assert report.ok, str(report)


@pytest.mark.parametrize(
    ("stated", "message"),
    [
        ("compute = f64", "a model computes in bf16 or f16, not f64"),
        ("reduce = bf16", "gradients are reduced in f32, or in the type of `compute`, not bf16"),
        ("compute = bf16 loss_scale = dynamic", "nothing is computed in f16"),
    ],
)
def test_types_that_do_not_fit_are_refused(tmp_path: Path, stated: str, message: str) -> None:
    with pytest.raises(CompileError) as raised:
        wide(tmp_path, f"precision {{ {stated} }}")
    (found,) = raised.value.diagnostics
    assert found.code == "SH0243" and found.message.startswith(message) and found.help


def test_parameters_that_are_narrow_already_compute_as_they_are(tmp_path: Path) -> None:
    with pytest.raises(CompileError, match="no parameter is wider than `compute = bf16`"):
        program(tmp_path, "precision { compute = bf16 }")


TYPED = (
    (program, "precision { reduce = f32 master = f32 }"),
    (program, "precision { reduce = f32 } accumulate 3"),
    (wide, "precision { compute = bf16 }"),
    (half, SCALED),
    (half, SCALED + " accumulate 2"),
)


@pytest.mark.parametrize(("make", "stated"), TYPED)
def test_a_proof_compares_in_the_stated_types(
    tmp_path: Path, make: Callable[..., Program], stated: str
) -> None:
    """No device is farther from float64 than a few times what the plain model is."""
    report = make(tmp_path, stated, STORED).verify()
    assert report.ok and report.typed is not None
    assert set(report.typed) == set(PARAMS) and 0 < max(report.typed.values()) < 1
    assert "in the types of `precision`" in str(report)


class Turning(nn.Module):
    """A parameter of complex numbers beside one of real ones."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.by = nn.Parameter(torch.randn(5, dtype=torch.complex64))
        self.up = nn.Linear(9, 7)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        turned = torch.fft.rfft(torch.tanh(x + self.up(x).sum()).float()) * self.by
        return {"loss": torch.fft.irfft(turned, n=9).square().sum() / ROWS}


@pytest.mark.parametrize("stated", ["compute = bf16", "compute = f16  loss_scale = dynamic"])
def test_complex_gradients_are_compared_whole_in_the_stated_types(
    tmp_path: Path, stated: str
) -> None:
    """Their imaginary parts count, in the scaled and clipped update too."""
    path = tmp_path / "spec.shard"
    head = "mesh { dp = 2 }", f"input x : f32[{ROWS}, 9] [dp, _]"
    more = f"precision {{ {stated} }}", STORES[2], "optimizer adamw(lr = 0.1, clip = 0.2)"
    path.write_text("\n".join((*head, *more, "")))
    report = shardlang.compile(path, model=Turning).verify()
    assert report.ok and report.typed is not None
    assert set(report.typed) == {"by", "up.weight", "up.bias"}
    assert 0 < report.typed["by"] < 1


def test_complex_gradients_of_f64_parts_are_clipped_by_the_whole_norm() -> None:
    param = nn.Parameter(torch.zeros(3, dtype=torch.complex128))
    param.grad = torch.tensor([1.1 + 2.3j, 0.7j, 3.0], dtype=torch.complex128)
    norm = squared_norm([param.grad], param.device).sqrt()
    clip([param], norm, 0.1)
    exact = 0.1 / (norm + 1e-6) * norm  # as torch clips
    made = squared_norm([param.grad], param.device).sqrt()
    assert made.item() == pytest.approx(exact.item(), rel=1e-13)


def _lost(x: Tensor, dtype: torch.dtype) -> Tensor:
    """A cast that keeps fewer digits than the type has."""
    return (x * 4096).to(torch.float8_e5m2).to(dtype) / 4096 if dtype is torch.bfloat16 else x


def _uncast(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x


@pytest.mark.parametrize("fault", [_lost, _uncast])
def test_a_cast_that_is_not_made_as_stated_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Callable[..., Tensor]
) -> None:
    """One that loses digits by numbers, one that is left out by the type of what is sent."""
    made = program(tmp_path, "precision { reduce = f32 }")
    monkeypatch.setattr(backward, "cast", fault)
    report = made.verify()
    assert not report.ok and report.typed is not None and max(report.typed.values()) > 1


def test_the_code_of_a_step_says_it(tmp_path: Path) -> None:
    """Casts stand in the code as they are made; a scaled loss is undone before it is clipped."""
    code = half(tmp_path, SCALED).code()
    order = ("backward(*saved, optimizer.loss_scale)", "optimizer.unscaled", "optimizer.clipped")
    assert [code.index(one) for one in order] == sorted(code.index(one) for one in order)
    assert "in f32" in code
    code = wide(tmp_path, "precision { compute = bf16 }", STORES[2], "accumulate 2").code()
    assert "cast(up_weight, torch.bfloat16)" in code and "sums in f32" in code


class Plain(nn.Module):
    """All in f32, as most models are."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(9, 7)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"loss": self.up(x).square().sum()}


@pytest.mark.parametrize("stated", ["master = f32", "reduce = f32", "master = f32  reduce = f32"])
def test_a_type_that_changes_nothing_is_said(stated: str, tmp_path: Path) -> None:
    path = tmp_path / "spec.shard"
    lines = ("mesh { dp = 2 }", f"input x : f32[{ROWS}, 9] [dp, _]", f"precision {{ {stated} }}")
    path.write_text("\n".join((*lines, "")))
    found = shardlang.compile(path, model=Plain).diagnostics
    assert [(one.code, one.severity) for one in found] == (
        [("SH0250", "warning")] * stated.count("=")
    )
    keys = [one.message.partition(" = f32` changes nothing: ")[0] for one in found]
    assert keys == [f"`{key}" for key in stated.replace("= f32", "").split()]
    assert {one.span.line for one in found} == {3}
