"""The plans of Hugging Face models: every style, and what is said of entries that do not fit."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

from shardlang.init.plans import STYLES, plan_of, wishes_of


class Layer(nn.Module):
    """One of everything that a plan can name."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 6)
        self.table = nn.Embedding(9, 4)
        self.norm = nn.LayerNorm(4)
        self.experts = nn.Module()
        self.experts.gate_up = nn.Parameter(nn.Linear(4, 6).weight.data.expand(3, 6, 4).clone())


class Model(nn.Module):
    """Two layers."""

    _tp_plan: ClassVar = {"layers.*.linear": "colwise"}

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Layer(), Layer()])


def asked(key: str, style: str) -> dict[tuple[str, int], bool]:
    """The dims that one entry asks for in layer 0, by name within the layer."""
    model = Model()
    names = {name: p.dim() for name, p in model.named_parameters()}
    made = wishes_of(model, names, [{f"layers.*.{key}": style}])
    prefix = "layers.0."
    dims = {**made.dims, **dict.fromkeys(made.experts, True)}
    return {(n.removeprefix(prefix), d): f for (n, d), f in dims.items() if n.startswith(prefix)}


@pytest.mark.parametrize(
    ("key", "style", "dims"),
    [
        ("linear", "colwise", {("linear.weight", 0): True, ("linear.bias", 0): True}),
        ("linear", "colwise_rep", {("linear.weight", 0): False, ("linear.bias", 0): False}),
        ("linear", "rowwise", {("linear.weight", 1): True}),
        ("linear", "rowwise_split_input", {("linear.weight", 1): False}),
        ("table", "embedding_rowwise", {("table.weight", 0): True}),
        ("table", "rowwise", {("table.weight", 0): True}),
        ("table", "embedding_colwise", {("table.weight", 1): False}),
        ("experts.gate_up", "packed_colwise", {("experts.gate_up", 1): True}),
        ("experts.gate_up", "local_packed_rowwise", {("experts.gate_up", 2): True}),
        ("experts.gate_up", "grouped_gemm", {("experts.gate_up", 0): True}),
        ("experts", "moe_tp_experts", {}),
        ("norm", "replicated_with_grad_allreduce", {}),
    ],
)
def test_a_style_splits_its_dim(key: str, style: str, dims: dict[tuple[str, int], bool]) -> None:
    assert asked(key, style) == dims


def test_sequence_parallel_names_modules() -> None:
    model = Model()
    made = wishes_of(model, {}, [{"layers.*.norm": "sequence_parallel"}])
    assert made.sequences == ["layers.0.norm", "layers.1.norm"]


def test_entries_that_do_not_fit_are_told() -> None:
    made = wishes_of(Model(), {}, [{"layers.*.gone": "colwise", "layers.*.norm": "sideways"}])
    assert made.unused == [
        "layers.*.gone: colwise (matches nothing)", "layers.*.norm: sideways (unknown style)"
    ]  # fmt: skip
    assert not made.dims


def test_a_plan_is_read_from_the_model_and_its_parts() -> None:
    assert plan_of(nn.Sequential(Model()), "tp_plan") == {"0.layers.*.linear": "colwise"}


def test_every_style_of_the_installed_transformers_is_known() -> None:
    parallel = pytest.importorskip("transformers.integrations.tensor_parallel")
    assert set(parallel.ALL_PARALLEL_STYLES.keys()) <= STYLES.keys()


class Wrapper(nn.Module):
    """What adapters put around a model: it passes on every name that it does not have."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.base, name)


def test_an_entry_of_a_wrapped_model_is_listed_once() -> None:
    inner = nn.Module()
    inner.up = nn.Linear(4, 6)  # type: ignore[assignment]
    inner._tp_plan = {"up": "colwise", "gone": "colwise"}  # type: ignore[assignment]
    config = SimpleNamespace(base_model_tp_plan={"up": "colwise", "gone": "colwise"})
    inner.config = config  # type: ignore[assignment]
    model = Wrapper(Wrapper(inner))
    names = {name: p.dim() for name, p in model.named_parameters()}
    plan = plan_of(model, "tp_plan")
    assert plan == {"base.base.up": "colwise", "base.base.gone": "colwise"}
    assert wishes_of(model, names, [plan]).unused == ["base.base.gone: colwise (matches nothing)"]


def test_a_vector_without_a_matrix_beside_it_is_no_bias() -> None:
    """An adapter's scale inside a wrapped projection is of another length than its rows."""
    model = nn.Module()
    model.q = nn.Module()  # type: ignore[assignment]
    model.q.base = nn.Linear(4, 6)
    model.q.scale = nn.Parameter(torch.ones(3))
    names = {name: p.dim() for name, p in model.named_parameters()}
    assert not wishes_of(model, names, [{"q": "colwise"}]).dims
