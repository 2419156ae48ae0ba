"""Microbatches: the result is that of the large batch, whatever counts in it, however stored."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import shardlang
from shardlang.api import Program
from shardlang.compiler import at_model
from shardlang.compiler.accumulate import accumulated, accumulated_step, along_microbatches
from shardlang.compiler.driver import CompileError
from shardlang.ir.accumulated import AccumulatedStep
from shardlang.ir.collective import Kind
from shardlang.ir.step import collectives_of, is_collective
from shardlang.passes.step.write_step import write_accumulated


class Words(nn.Module):
    """Rows whose labels count unevenly, positions that all rows share, a table that is tied."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.places = nn.Embedding(9, 6), nn.Embedding(5, 6)
        self.layers = nn.ModuleList(nn.Linear(6, 6) for _ in range(2))
        self.drop, self.norm = nn.Dropout(0.3), nn.LayerNorm(6)
        self.calls: Tensor
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, ids: Tensor, labels: Tensor) -> dict[str, Tensor]:
        self.calls += 1
        x = self.table(ids) + self.places(torch.arange(5))
        for layer in self.layers:
            x = x + self.drop(torch.tanh(layer(x)))
        scores = self.norm(x) @ self.table.weight.T
        loss = F.cross_entropy(
            scores.flatten(0, 1), torch.where(labels > 5, -100, labels).flatten()
        )
        penalty = sum(p.square().sum() for p in self.layers.parameters())
        return {"loss": loss + 0.01 * penalty, "scores": scores}


class Normed(nn.Module):
    """The statistics of a batch norm are of all rows."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.norm = nn.Linear(4, 4), nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"loss": self.norm(self.up(x)).sin().mean()}


class NormedLayers(nn.Module):
    """The same in every layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)) for _ in "ab")

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        for layer in self.layers:
            x = layer(x)
        return {"loss": x.sin().mean()}


class Rooted(nn.Module):
    """A loss that is no sum over the rows."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"loss": self.up(x).square().mean().sqrt()}


WORDS = (
    "input ids : i64[12, 5] below 9 [{axes}, _]\ninput labels : i64[12, 5] below 9 [{axes}, _]\n"
)
ROWS = "input x : f32[8, 4] [dp, _]\n"


def program(folder: Path, model: type[nn.Module], text: str) -> Program:
    path = folder / "spec.shard"
    path.write_text(text)
    return shardlang.compile(path, model=model)


STORES = {
    "one device": ("dp = 1", "dp", ""),
    "data": ("dp = 2", "dp", ""),
    "uneven": ("dp = 2", "dp", "accumulate 5"),
    "optimizer": ("dp = 2", "dp", 'store optimizer "**" over dp'),
    "gradients": ("dp = 2", "dp", 'store gradients "**" over dp random fast'),
    "value": ("dp = 2", "dp", 'store "**" over dp regather'),
    "recompute": ("dp = 2", "dp", 'store "**" over dp recompute "layers.*"'),
    "width": ("dp = 2 tp = 2", "dp", 'param "layers.*.weight" [tp, _] store "**" over dp'),
    "whole": ("tp = 2", "_", 'store optimizer "**" over tp'),
    "two axes": (
        "dp = 2 tp = 2",
        "dp",
        'param "layers.*.weight" [tp, _] store optimizer "**" over dp*tp',
    ),
    "values": ("dp = 2", "dp", 'value "layers.*" [dp, _, _] output scores [dp, _, _]'),
}


@pytest.mark.parametrize("name", STORES)
def test_it_is_the_large_batch(tmp_path: Path, name: str) -> None:
    mesh, axes, rest = STORES[name]
    text = f"mesh {{ {mesh} }}\n{WORDS.format(axes=axes)}accumulate 3\n{rest}\n"
    report = program(tmp_path, Words, text).verify()
    assert report.ok, report
    assert report.accumulated and report.updates and "calls" in report.accumulated
    assert report.microbatches == (5 if name == "uneven" else 3)
    assert max(report.accumulated.values()) < 1e-12 > max(report.updates.values()) / 100


@pytest.mark.parametrize(
    ("mesh", "ids", "labels", "rest"),
    [
        ("dp = 2", "...", "...", "accumulate 3"),
        ("dp = 2", "..., _", "..., dp, _", "accumulate 3"),
        ("dp = 2", "..., dp, _", "dp, ...", "accumulate 3"),
        ("pp = 2", "...", "..., _", 'pipeline pp { split "layers" microbatches 3 }'),
    ],
)
def test_the_rows_may_be_among_the_remaining_dims(
    tmp_path: Path, mesh: str, ids: str, labels: str, rest: str
) -> None:
    """`...` in front stands for the first dim as `?` does, or for none."""
    text = f"mesh {{ {mesh} }}\ninput ids : i64[12, 5] below 9 [{ids}]\n"
    text += f"input labels : i64[12, 5] below 9 [{labels}]\n{rest}\n"
    made = program(tmp_path, Words, text)
    assert made.spec.data_axes == ({"dp"} if "dp" in ids + labels else set())
    report = made.verify()
    assert report.ok and report.accumulated, report
    assert max(report.accumulated.values()) < 1e-12


class Weighed(nn.Module):
    """Classes that weigh unevenly, as many as there are rows."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(2))

    def forward(self, x: Tensor, t: Tensor, weights: Tensor) -> dict[str, Tensor]:
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return {"loss": F.cross_entropy(x, t, weight=weights.abs())}


@pytest.mark.parametrize(
    ("mesh", "rows", "rest"),
    [
        ("dp = 1", "_", "accumulate 4"),
        ("dp = 2", "dp", "accumulate 4"),
        ("dp = 2", "dp", "accumulate 3"),
        ("dp = 2", "dp", 'store "**" over dp accumulate 2'),
        ("pp = 2", "_", 'pipeline pp { split "layers" microbatches 4 }'),
    ],
)
@pytest.mark.parametrize("classes", ["_", "dp"])
def test_as_many_classes_as_rows(
    tmp_path: Path, mesh: str, rows: str, rest: str, classes: str
) -> None:
    """No microbatch takes a part of the weights of the classes for the rows of its own."""
    lies = classes if classes in mesh else "_"
    text = f"mesh {{ {mesh} }}\ninput x : f32[8, 8] [{rows}, _]\n"
    text += f"input t : i64[8] below 8 [{rows}]\ninput weights : f32[8] [{lies}]\n{rest}\n"
    report = program(tmp_path, Weighed, text).verify()
    assert report.ok and report.accumulated, report
    assert max(report.accumulated.values()) < 1e-12


class Standard(nn.Module):
    """Inputs that are made standard over all rows: the variance needs the mean first."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        apart = x - x.mean(0)
        return {"loss": self.up(apart / apart.square().mean(0)).sin().mean()}


class Multiplied(nn.Module):
    """A sum over the rows of an input alone, times a sum over parameters alone."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(3, 3) for _ in range(2))
        self.start = nn.Parameter(torch.linspace(-1, 2, 6).view(2, 3))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y = self.start
        for layer in self.layers:
            y = torch.tanh(layer(y))
        return {"loss": y.square().sum() * x.exp().sum()}


class Decayed(nn.Module):
    """A loss of parameters alone."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"loss": self.up.weight.square().sum()}


@pytest.mark.parametrize(
    ("model", "mesh", "rest"),
    [
        (Multiplied, "dp = 2", "accumulate 3"),
        (Multiplied, "pp = 2", 'pipeline pp { split "layers" microbatches 3 }'),
        (Decayed, "dp = 2", 'store "**" over dp accumulate 3'),
    ],
)
def test_no_sum_over_rows_leads_from_parameters_to_the_loss(
    tmp_path: Path, model: type[nn.Module], mesh: str, rest: str
) -> None:
    """Its gradient counts once; a step on this device gives it too."""
    rows = "dp" if "dp" in mesh else "_"
    text = f"mesh {{ {mesh} }}\ninput x : f32[7, 3] [{rows}, _]\n{rest}\n"
    report = program(tmp_path, model, text).verify()
    assert report.ok and report.accumulated, report
    assert max(report.accumulated.values()) < 1e-12
    alone = program(tmp_path, model, "mesh { dp = 1 }\ninput x : f32[7, 3] [_, _]\naccumulate 3\n")
    plain, batch = model(), {"x": torch.linspace(-1, 1, 21).view(7, 3)}
    plain.load_state_dict(alone.load().state_dict())
    loss = plain(**batch)["loss"]
    loss.backward()
    taken = alone.step(batch)
    assert taken.loss == pytest.approx(loss.item(), rel=1e-6)
    norm = nn.utils.get_total_norm([p.grad for p in plain.parameters() if p.grad is not None])
    assert taken.grad_norm == pytest.approx(float(norm), rel=1e-6)


class Spread(nn.Module):
    """A loss with a variance of the model's results, of which the backward reads nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y = self.up(x)
        apart = y.detach() - y.detach().mean(0)
        return {"loss": y.sin().mean() + apart.square().mean()}


class Masked(nn.Module):
    """How many positions count is drawn, before a sum over all rows."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        mask = (torch.rand_like(x) < 0.5).to(x.dtype)
        return {"loss": (self.up(x).square() * mask).sum() / mask.sum()}


class Recurrent(nn.Module):
    """Two layers in one op, which draws between them."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(4, 4)
        self.layers = nn.LSTM(4, 3, 2, batch_first=True, dropout=0.2)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"loss": self.layers(self.up(x))[0].square().sum()}


def test_dropout_inside_a_recurrent_op_is_named(tmp_path: Path) -> None:
    text = "mesh { dp = 2 }\ninput x : f32[8, 5, 4] [dp, _, _]\naccumulate 2\n"
    compiled = program(tmp_path, Recurrent, text).compiled
    with pytest.raises(CompileError) as caught:
        accumulated_step(along_microbatches(compiled))
    (found,) = caught.value.diagnostics
    assert found.code == "SH0409" and "`lstm` draws inside" in found.message
    assert "set its own `dropout` to 0" in found.help


REFUSED = {
    Masked: "",
    Normed: "norm",
    Rooted: "",
    Standard: "",
    Spread: "",
}


@pytest.mark.parametrize("model", REFUSED)
def test_what_needs_all_rows_at_once_is_refused(
    tmp_path: Path, model: type[nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the line of the model, or at the statement where that is nobody's to edit."""
    made = program(tmp_path, model, f"mesh {{ dp = 2 }}\n{ROWS}accumulate 2\n")
    with pytest.raises(CompileError) as error:
        made.verify()
    (found,) = error.value.diagnostics
    assert found.code == "SH0409"
    assert not REFUSED[model] or REFUSED[model] in str(found.notes)
    ((text, stated),) = [(label.text, label.span) for label in found.labels]
    assert text == "`accumulate` is stated here" and found.span.file.endswith("accumulate.py")
    monkeypatch.setattr(at_model, "is_installed", lambda file: True)
    with pytest.raises(CompileError) as error:
        made.verify()
    assert error.value.diagnostics[0].span == stated


def test_under_a_pipeline_the_remedy_is_of_the_pipeline(tmp_path: Path) -> None:
    stages = 'pipeline pp { split "layers" microbatches 2 }'
    text = f"mesh {{ pp = 2 }}\ninput x : f32[8, 4] [_, _]\n{stages}\n"
    made = program(tmp_path, NormedLayers, text)
    with pytest.raises(CompileError) as error:
        made.verify()
    (found,) = error.value.diagnostics
    assert found.code == "SH0409" and found.help is not None
    assert found.help.endswith("leave `pipeline` out") and "accumulate" not in found.help
    assert "microbatches" in found.message


def test_more_microbatches_than_rows(tmp_path: Path) -> None:
    made = program(tmp_path, Rooted, f"mesh {{ dp = 2 }}\n{ROWS}accumulate 5\n")
    with pytest.raises(CompileError) as error:
        made.verify()
    assert [found.code for found in error.value.diagnostics] == ["SH0242"]


def _step(folder: Path, rest: str) -> AccumulatedStep:
    text = f"mesh {{ dp = 2 }}\n{WORDS.format(axes='dp')}accumulate 3\n{rest}\n"
    made = accumulated(program(folder, Words, text).compiled).program
    return write_accumulated(made, [leaf.name for leaf in made.leaves if leaf.trainable])


def _kinds(graph: torch.fx.Graph) -> set[Kind]:
    return {
        c.kind
        for node in graph.nodes
        if is_collective(node)
        for _, c in collectives_of(node)
        if c.sends and node.name and "total" not in node.name
    }


def test_where_gradients_are_reduced(tmp_path: Path) -> None:
    """Once for each step, but for those that are stored split, which no device holds whole."""
    for rest in ("", 'store optimizer "**" over dp'):
        assert _kinds(_step(tmp_path, rest).reduce.graph) & {Kind.ALL_REDUCE, Kind.REDUCE_SCATTER}
    split = _step(tmp_path, 'store gradients "**" over dp')
    assert _kinds(split.reduce.graph) == set()
    assert Kind.REDUCE_SCATTER in _kinds(split.main.graph)


def test_what_is_made_last_reads_no_other_parameter(tmp_path: Path) -> None:
    """Such as those that are joined with the ones of a penalty, to be reduced with them."""
    plain, split = (_step(tmp_path, rest).finish for rest in ("", 'store gradients "**" over dp'))
    layers = {f"layers.{i}.{name}" for i in range(2) for name in ("weight", "bias")}
    for piece in (plain, split):
        assert {x for x in piece.takes if not x.startswith("total")} == layers


def test_a_gradient_that_is_summed_twice_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A planted fault: what all microbatches have alike counts for each of them."""
    from shardlang.passes.step import microbatches

    monkeypatch.setattr(microbatches._Split, "_first_alone", lambda self, x, kept: x)
    text = f"mesh {{ dp = 2 }}\n{WORDS.format(axes='dp')}accumulate 3\n"
    report = program(tmp_path, Words, text).verify()
    assert not report.ok
