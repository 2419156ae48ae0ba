"""Every optimizer of torch: on split, uneven parameters it is its own update of whole ones.

The numbers are float64. What cannot be right in parts is refused, and is shown to be wrong so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest
import torch
import trained
from torch import Tensor, nn

from shardlang.api import Program
from shardlang.ir.leaf import Leaf
from shardlang.ir.mesh import Coord
from shardlang.ir.optimizers import (
    ELEMENTWISE,
    SPARSE,
    WHOLE,
    UpdateRule,
    arguments_of,
    classes,
    made,
)
from shardlang.ir.shards import shard_of
from shardlang.runtime.errors import RunError
from shardlang.runtime.optim import make_optimizer
from shardlang.runtime.update import DeviceUpdate
from shardlang.spec import load_spec_text

OTHERS: dict[str, dict[str, object]] = {
    "adadelta": {"lr": 0.5, "rho": 0.8, "weight_decay": 0.1},
    "adagrad": {"lr": 0.1, "lr_decay": 0.1, "initial_accumulator_value": 0.2},
    "adam": {"lr": 0.02, "amsgrad": True, "weight_decay": 0.1, "clip": 0.5},
    "adamax": {"lr": 0.02, "betas": (0.8, 0.95), "weight_decay": 0.1},
    "adamw": {"lr": 0.02, "maximize": True, "foreach": True},
    "asgd": {"lr": 0.1, "t0": 1.0, "lambd": 0.01, "weight_decay": 0.1},
    "nadam": {"lr": 0.02, "momentum_decay": 0.1, "decoupled_weight_decay": True},
    "radam": {"lr": 0.02, "betas": (0.5, 0.6), "weight_decay": 0.1},
    "rmsprop": {"lr": 0.02, "momentum": 0.9, "centered": True},
    "rprop": {"lr": 0.02, "etas": (0.4, 1.3)},
    "sgd": {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.1, "clip": 0.5},
}
"""Arguments that take other paths of each."""

LAYOUTS = {
    "two axes": (
        "mesh { dp = 2 tp = 3 as model }"
        ' param "embed.weight" [tp, _] param "up.*" [tp, ...] param "down.weight" [_, tp]'
        ' store gradients "**" over dp'
    ),
    "columns": (
        'mesh { dp = 1 tp = 4 as model } param "embed.weight" [_, tp] param "up.weight" [tp, _]'
        ' param "norm.*" [tp]'
    ),
    "stored": 'mesh { dp = 3 } store "{up,norm}.*" over dp store optimizer "down.*" over dp',
}
"""Parameters of 11 x 7, 9 x 7, 7 x 9, 9 and 7 numbers, split so."""


@pytest.fixture(scope="module", params=LAYOUTS)
def program(request: pytest.FixtureRequest) -> Program:
    return trained.program(LAYOUTS[request.param])


STEPS = 4


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_updates_of_parts_are_parts_of_updates(program: Program, name: str) -> None:
    """Parameters, and every state of their size, on all devices."""
    assert OTHERS.keys() == set(ELEMENTWISE)
    leaves = [leaf for leaf in program.local.leaves if leaf.trainable]
    mesh = program.local.mesh
    for arguments in ({}, OTHERS[name]):
        rule, given = UpdateRule(name, arguments), torch.Generator().manual_seed(3)
        whole = {x.name: nn.Parameter(_drawn(x.layout.shape, given)) for x in leaves}
        plain = torch.optim.__dict__[type(make_optimizer(whole, rule)).__name__](
            list(whole.values()), **rule.settings
        )
        devices = [_device(leaves, whole, program, mesh.coord(i)) for i in range(mesh.devices)]
        optimizers = [make_optimizer(each.named, rule) for each in devices]
        for _ in range(STEPS):
            gradients = {n: _drawn(x.shape, given) for n, x in whole.items()}
            for n, x in whole.items():
                x.grad = gradients[n]
            plain.step()
            for i, (each, optimizer) in enumerate(zip(devices, optimizers, strict=True)):
                at = mesh.coord(i)
                each.load({x.name: shard_of(gradients[x.name], x.layout, at) for x in leaves})
                each.step(optimizer)
        for i, (each, optimizer) in enumerate(zip(devices, optimizers, strict=True)):
            _compare(leaves, whole, plain, each, optimizer, mesh.coord(i))


def _drawn(shape: Sequence[int], given: torch.Generator) -> Tensor:
    return torch.randn(tuple(shape), generator=given, dtype=torch.float64)


def _device(
    leaves: Sequence[Leaf], whole: Mapping[str, Tensor], program: Program, at: Coord
) -> DeviceUpdate:
    wide = {x.name: x.gathered or x.layout for x in leaves}
    values = {n: shard_of(whole[n].detach(), lies, at).clone() for n, lies in wide.items()}
    return DeviceUpdate(leaves, values, program.local.mesh, at)


def _compare(
    leaves: Sequence[Leaf],
    whole: Mapping[str, Tensor],
    plain: torch.optim.Optimizer,
    each: DeviceUpdate,
    optimizer: torch.optim.Optimizer,
    at: Coord,
) -> None:
    for leaf in leaves:
        want, part = whole[leaf.name], each.named[leaf.name]
        _close(part.detach(), shard_of(want.detach(), leaf.layout, at))
        states, mine = plain.state[want], optimizer.state[part]
        assert states.keys() == mine.keys()
        for key, value in states.items():
            if isinstance(value, Tensor) and value.shape == want.shape:
                _close(mine[key], shard_of(value, leaf.layout, at))
            elif value is not None:
                assert torch.equal(torch.as_tensor(mine[key]), torch.as_tensor(value))


def _close(mine: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(mine, want, rtol=1e-12, atol=1e-12)


def test_two_steps_by_signs_are_proven() -> None:
    """Of an embedding's unused rows Rprop must not follow the sign of rounding."""
    report = trained.program(LAYOUTS["two axes"] + " optimizer rprop(lr = 0.02)").verify()
    assert report.updates is not None
    assert max(report.updates.values()) < 1e-9


@pytest.mark.parametrize("name", ["adafactor", "muon"])
def test_what_needs_whole_parameters_is_wrong_in_parts(name: str) -> None:
    """So the list of those that are refused is no longer than it must be."""
    given = torch.Generator().manual_seed(0)
    whole, gradient = (torch.randn(6, 4, generator=given) for _ in range(2))
    rows = [slice(0, 2), slice(2, 6)]
    updated = _updated(name, whole, gradient)
    parts = torch.cat([_updated(name, whole[at], gradient[at]) for at in rows])
    assert (updated - parts).abs().max() > 1e-4


def _updated(name: str, value: Tensor, gradient: Tensor) -> Tensor:
    param = nn.Parameter(value.clone())
    param.grad = gradient.clone()
    made(name, [param], {"lr": 0.1}).step()
    return param.detach()


@pytest.mark.parametrize("name", sorted(classes()))
def test_every_optimizer_is_taken_or_refused(name: str) -> None:
    """One message with a place, and the way that is left."""
    text = f'mesh {{ dp = 2 }}\nmodel "m.py:f"\ninput x : f32[4] [dp]\noptimizer {name}\n'
    spec, findings = load_spec_text(text)
    if name in ELEMENTWISE:
        assert spec is not None
        return
    (finding,) = (x for x in findings if x.is_error)
    assert (finding.code, finding.span.line, finding.span.column) == ("SH0245", 4, 11)
    assert name in WHOLE
    own = f"torch.optim.{classes()[name].__name__}"
    assert (own in (finding.help or "")) == (name not in SPARSE)
    with pytest.raises(RunError, match="cannot be made") as caught:
        make_optimizer({}, UpdateRule(name))
    assert caught.value.code == "SH0606"


@pytest.mark.parametrize(
    ("name", "code", "said"),
    [
        ("AdamW", "SH0220", "did you mean `adamw`"),
        ("r_prop", "SH0220", "did you mean `rprop`"),
        ("sparse_adam", "SH0245", "dense"),
        ("Muon", "SH0245", "torch.optim.Muon"),
    ],
)
def test_a_class_of_torch_is_known_however_it_is_written(name: str, code: str, said: str) -> None:
    text = f'mesh {{ dp = 2 }}\nmodel "m.py:f"\ninput x : f32[4] [dp]\noptimizer {name}\n'
    (finding,) = (x for x in load_spec_text(text)[1] if x.is_error)
    assert (finding.code, finding.span.line) == (code, 4)
    assert said in f"{finding.message} {finding.help}"


def test_the_arguments_are_those_of_the_class() -> None:
    """What torch's signature has, but for what is no setting of an update."""
    assert arguments_of("rprop") == {
        "lr": "number", "etas": "pair", "step_sizes": "pair", "foreach": "flag", "maximize": "flag",
    }  # fmt: skip
    assert arguments_of("adamw")["fused"] == "flag"


def test_groups_are_updated_by_their_own_settings() -> None:
    """The last group that matches wins; a tied parameter is found under each of its names."""
    text = (
        "mesh { dp = 2 tp = 3 as model }"
        ' param "embed.weight" [tp, _] param "up.*" [tp, ...]'
        " optimizer adamw(lr = 0.02, weight_decay = 0.3, eps = 1e-9)"
        ' group "**.bias", "norm.*" (weight_decay = 0) group "head.*", "up.bias" (lr = 0.5)'
    )
    program = trained.program(text)
    rule = program.compiled.rule
    model = trained.seeded()
    names = [name for name, _ in model.named_parameters()]
    assert rule.grouped(names) == [
        (["up.weight", "down.weight"], {}),
        (["down.bias", "norm.weight", "norm.bias"], {"weight_decay": 0}),
        (["embed.weight", "up.bias"], {"lr": 0.5}),
    ]
    report = program.verify()
    assert report.updates is not None
    assert max(report.updates.values()) < 1e-9
    mine = make_optimizer(dict(model.named_parameters()), rule)
    assert [(g["lr"], g["weight_decay"], len(g["params"])) for g in mine.param_groups] == [
        (0.02, 0.3, 2), (0.02, 0, 3), (0.5, 0.3, 2),
    ]  # fmt: skip


def test_shards_are_uneven() -> None:
    """The layouts above split what they do not divide."""
    found = trained.program(LAYOUTS["two axes"]).local
    leaf = next(leaf for leaf in found.leaves if leaf.name == "embed.weight")
    sizes = {
        shard_of(torch.zeros(11, 7), leaf.layout, found.mesh.coord(i)).numel() for i in range(6)
    }
    assert len(sizes) > 1
