"""Expectations against a plan."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from shardlang.ir.dim_layout import DimLayout
from shardlang.ir.layout import Layout
from shardlang.ir.mesh import Axis, Mesh
from shardlang.plan.expectations import check_expects
from shardlang.plan.moments import Memory, Phase
from shardlang.plan.types import CollectiveRow, Plan, TensorRow
from shardlang.spec import load_spec_text

BASE = 'mesh { dp = 2 tp = 4 } model "m.py:f" input x : f32[8, 16] [dp, tp] expect {\n'


DP, TP = Axis("dp", 2), Axis("tp", 4)


def row(
    op: str, axes: str, phase: Phase, module: str, count: int, bytes: int, full_gather: bool = False
) -> CollectiveRow:
    return CollectiveRow(
        op,
        tuple(axes.split("*")),
        phase,
        module,
        (),
        count,
        bytes,
        bytes * 4 // 5,
        "",
        full_gather=full_gather,
    )


def tensor(name: str, layout: Layout) -> TensorRow:
    return TensorRow(name, "value", torch.float32, layout)


PLAN = Plan(
    Mesh((DP, TP)),
    frozenset(),
    (
        tensor(
            "layers.0.out",
            Layout(
                (DimLayout.shard(8, (DP,)), DimLayout.shard(16, (TP,), 2)), varying=frozenset({DP})
            ),
        ),
        tensor("layers.1.out", replace(Layout.whole((8, 16)), partial=frozenset({TP}))),
    ),
    (
        row("all_reduce", "tp", "forward", "layers.0.mlp", 2, 1000),
        row("all_reduce", "dp*tp", "backward", "layers.1", 3, 5000),
        row("all_gather", "dp", "forward", "", 1, 2 * 2**20),
        row("all_to_all", "tp", "backward", "norm", 1, 0, full_gather=True),
    ),
    Memory(0, 0, 0, 0, "sgd", 0, tuple),
)


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("all_reduce == 5", ""),
        ("all_reduce == 4", "SH0501"),
        ("forward all_reduce == 2", ""),
        ("update all_reduce > 0", "SH0501"),
        ("all_reduce over dp == 3", ""),
        ("all_reduce over tp == 5", ""),
        ("all_reduce over dp*tp == 3", ""),
        ('all_reduce in "layers.*" == 5', ""),
        ('all_reduce in "layers.0" == 2', ""),
        ('all_gather in "*" == 0', ""),
        ('all_gather in "**" == 1', ""),
        ("bytes all_reduce == 6000", ""),
        ("bytes all_gather <= 1MiB", "SH0501"),
        ("bytes all_gather <= 2MiB", ""),
        ("bytes all_gather < 2MiB", "SH0501"),
        ("bytes all_gather >= 2MiB", ""),
        ("bytes all_reduce <= 1.25 * bound", ""),
        ("bytes all_reduce < 1.25 * bound", "SH0501"),
        ("bytes all_reduce > bound", ""),
        ("bytes any <= 1.1 * bound", "SH0501"),
        ("bytes update any == bound", ""),
        ("any == 7", ""),
        ("any over dp == 4", ""),
        ("forbid any over dp", "SH0502"),
        ("forbid send_recv", ""),
        ("forbid all_reduce", "SH0502"),
        ("forbid all_reduce over tp in \"layers.1\"", "SH0502"),
        ('layout "layers.0.out" [dp, tp(2)]', ""),
        ('layout "layers.0.out" [dp, ?]', ""),
        ('layout "layers.0.out" [dp, tp]', "SH0503"),
        ('layout "layers.0.out" [dp, _]', "SH0503"),
        ('layout "layers.1.out" [...] +tp', ""),
        ('layout "layers.1.out" [...]', "SH0503"),
        ('layout "layers.1.out" [_]', "SH0302"),
        ('layout "layers.2.out" [_]', "SH0504"),
        ('layout "layers.*.out" [dp, ...]', "SH0503"),
        ("full_gather == 1", ""),
        ("forbid full_gather", "SH0502"),
        ("forbid full_gather over dp", ""),
        ('forbid backward full_gather over tp in "norm"', "SH0502"),
        ("forbid forward full_gather", ""),
        ('local "layers.0.out" [4, 4]', ""),
        ('local "layers.0.out" [4, ?]', ""),
        ('local "layers.0.out" [?, 8]', "SH0505"),
        ('local "layers.0.out" [4]', "SH0505"),
        ('local "layers.*.out" [8, 16]', "SH0505"),
        ('local "layers.*.out" [1, 1]', "SH0505"),
        ('local "layers.2.out" [4]', "SH0504"),
        ('local bytes "layers.1.out" <= 512', ""),
        ('local bytes "layers.*.out" < 1KiB', ""),
        ('local bytes "layers.*.out" == 64', "SH0505"),
        ('local bytes "layers.*.out" < 64', "SH0505"),
    ],
)  # fmt: skip
def test_expectations(line: str, wanted: str) -> None:
    spec, findings = load_spec_text(BASE + line + "}", "spec.shard")
    assert spec is not None, findings
    found = check_expects(spec, PLAN)
    assert [finding.code for finding in found] == ([wanted] if wanted else [])
    assert all(finding.span.line == 2 and finding.help for finding in found)


def test_a_local_size_is_shown_as_stated_and_as_found() -> None:
    text = 'local "layers.*.out" [4, 16] local bytes "**" < 0 }'
    spec, _ = load_spec_text(BASE + text, "spec.shard")
    assert spec is not None
    shape, size = check_expects(spec, PLAN)
    assert shape.message == "`layers.0.out` is [4, 4] on a device, expected [4, 16]"
    assert size.message == "`layers.1.out` is 512B on a device, expected < 0B"
    assert size.notes == (
        "`layers.1.out` lies as `[8, 16] +tp`: [8, 16] on a device, 512B",
        "`layers.0.out` lies as `[8@dp, 16@tp(2)] ~dp`: [4, 4] on a device, 64B",
    )


def test_a_bound_is_shown_with_what_is_sent() -> None:
    text = "bytes forward all_reduce <= 1.1 * bound bytes forward all_reduce == bound }"
    spec, _ = load_spec_text(BASE + text, "spec.shard")
    assert spec is not None
    times, once = check_expects(spec, PLAN)
    assert times.message == (
        "`bytes forward all_reduce` is 1000B, expected <= 1.1 * bound: 880B, 1.1 times 800B, what"
        " any program must send"
    )
    assert once.message == (
        "`bytes forward all_reduce` is 1000B, expected == bound: 800B, what any program must send"
    )
    assert times.notes == (
        "2 x forward all_reduce over tp in `layers.0.mlp`, 1000B (any program: 800B)",
    )


def test_the_notes_list_the_largest_rows() -> None:
    spec, _ = load_spec_text(BASE + "bytes all_reduce == 0 }", "spec.shard")
    assert spec is not None
    (finding,) = check_expects(spec, PLAN)
    assert finding.message == "`bytes all_reduce` is 5.859KiB, expected == 0B"
    assert (
        finding.notes[0]
        == "3 x backward all_reduce over dp*tp in `layers.1`, 4.883KiB (any program: 3.906KiB)"
    )
