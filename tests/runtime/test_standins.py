"""What a loop reads of the model's modules is the model's; what it changes in them is refused."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from called import DP, Pair, refusal, rows
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, weight_norm
from torch.optim.swa_utils import update_bn

from shardlang.runtime.module import held

TOLERANCE = 1e-10


class Own(nn.Module):
    """A module of one's own, with attributes of every kind."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.linspace(0.5, 1.5, width)), 0.25
        self.act, self.sizes, self.other = torch.tanh, [width, 1], object()

    def extra_repr(self) -> str:
        """Tells of what a stand-in does not have."""
        return str(self.other)

    def forward(self, x: Tensor) -> Tensor:
        """Shape `b width`."""
        return self.act(x) * self.scale * getattr(self, "gain", 1.0) + self.shift


class Deep(nn.Module):
    """Containers, a module under two names, a tied weight, settings, and a method of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(6, 6), nn.Linear(6, 6, bias=False), Own(6)])
        self.table = nn.ModuleDict({"bn": nn.BatchNorm1d(6), "drop": nn.Dropout(0.25)})
        self.again, self.rate = self.layers[0], 2.0
        self.body = nn.Sequential(nn.LayerNorm(6), nn.GELU(), nn.Linear(6, 6))
        self.head = nn.Linear(6, 6)
        self.head.weight = self.layers[1].weight

    def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        """Shapes `b 6`."""
        z = x
        for layer in self.layers:
            z = layer(z)
        z = self.again(self.body(self.table["drop"](self.table["bn"](z)))) * self.rate
        return {"loss": F.mse_loss(self.head(z), y)}

    def generate(self) -> None:
        """What a loop may call on the plain model."""


@pytest.fixture(scope="module")
def pair() -> Pair:
    return Pair(DP, Deep)


def test_modules_have_the_models_classes_and_settings(pair: Pair) -> None:
    m: Any = pair.module
    mine = {name: type(part) for name, part in m.named_modules() if name}
    assert mine == {name: type(part) for name, part in pair.plain.named_modules() if name}
    assert [type(part) for part in m.layers[:2]] == [nn.Linear, nn.Linear]
    assert len(m.layers) == 3
    assert m.again is m.layers[0]
    assert (m.layers[0].in_features, m.table["bn"].momentum, m.rate) == (6, 0.1, 2.0)
    assert m.layers[1].bias is None
    assert (m.layers[2].act, m.layers[2].sizes) == (torch.tanh, [6, 1])
    assert "in_features=6" in repr(m)


def test_what_the_plain_model_alone_has_is_said_to_be_its(pair: Pair) -> None:
    assert not hasattr(pair.module, "generate") and hasattr(Deep, "generate")
    with pytest.raises(AttributeError, match=r"`generate` is the plain `Deep`'s: .* around calls"):
        pair.module.generate()
    with pytest.raises(AttributeError, match="no attribute 'generated'"):
        pair.module.generated()


def test_weights_are_initialized_by_class(pair: Pair) -> None:
    def init(part: nn.Module) -> None:
        if type(part) is nn.Linear:
            nn.init.constant_(part.weight, 0.1)
        if isinstance(part, (nn.LayerNorm, nn.BatchNorm1d)):
            part.reset_parameters()

    for model in pair.both():
        for param in model.parameters():
            param.data.fill_(0.3)
        model.apply(init)
        for layer in model.get_submodule("layers").children():
            layer.requires_grad_(not isinstance(layer, Own))
    assert pair.module.get_parameter("head.weight")[0, 0] == 0.1
    assert pair.step(rows(5)) < TOLERANCE


def test_notes_of_a_loop_and_what_is_put_back_are_accepted(pair: Pair) -> None:
    for model in pair.both():
        m: Any = model
        m.step, m.layers[0].note = 3, "first"
        m.table["drop"].p, m.head.weight = 0.5, m.head.weight
        m.table["drop"].p = 0.25
        m.table["bn"].running_mean = torch.linspace(-1, 1, 6, dtype=torch.float64)
        m.body.train().register_state_dict_post_hook(lambda *_: None)
    assert pair.step(rows(5)) < TOLERANCE


def test_weights_are_given_by_functional_call(pair: Pair) -> None:
    given = rows(5)
    found = []
    for model in map(copy.deepcopy, pair.both()):
        batch = getattr(model, "shard_inputs", dict)(**given)
        halves = {name: p.detach() * 0.5 for name, p in model.named_parameters()}
        torch.manual_seed(0)
        found.append(torch.func.functional_call(model, halves, (), batch)["loss"])
    torch.testing.assert_close(found[0], found[1], rtol=TOLERANCE, atol=0.0)


def _set(path: str, value: Any) -> Callable[[Any], None]:
    where, _, name = path.rpartition(".")
    return lambda m: setattr(m.get_submodule(where), name, value)


def _dual(m: Any, batch: dict[str, Tensor]) -> None:
    with torch.autograd.forward_ad.dual_level():
        ones = {n: torch.ones_like(p) for n, p in m.named_parameters()}
        dual = torch.autograd.forward_ad.make_dual
        params = {n: dual(p.detach(), ones[n]) for n, p in m.named_parameters()}
        torch.func.functional_call(m, params, (), batch)


CHANGES: dict[str, Callable[[Any], Any]] = {
    "`p` of `table.drop` is `0.5` now": _set("table.drop.p", 0.5),
    "`momentum` of `table.bn` is `0.5` now": _set("table.bn.momentum", 0.5),
    "`momentum` of `table.bn` is `None`": lambda m: update_bn([torch.ones(5, 6).double()], m),
    "`rate` of the model is `3.0` now": _set("rate", 3.0),
    "`rate` of the model is missing": lambda m: delattr(m, "rate"),
    "`act` of `layers.2` is another `builtin_function": _set("layers.2.act", F.gelu),
    "`sizes` of `layers.2` is `[6, 1, 2]`": lambda m: m.layers[2].sizes.append(2),
    "`other` of `layers.2` is `1`": _set("layers.2.other", 1),
    "`gain` of `layers.2` is `2.0`": _set("layers.2.gain", 2.0),
    "`forward` of `head` is another": _set("head.forward", lambda x: x),
    "the module `0` of `body` is another `Identity`": _set("body.0", nn.Identity()),
    "the module `more` of the model": lambda m: m.add_module("more", nn.Linear(6, 6)),
    "the module `head` of the model is missing": lambda m: delattr(m, "head"),
    "the module `3` of `layers`": lambda m: m.layers.append(nn.Linear(6, 6)),
    "the tensor `lora` of `head`": _set("head.lora", nn.Parameter(torch.ones(6))),
    "the tensor `bias` of `layers.1`": _set("layers.1.bias", nn.Parameter(torch.ones(6))),
    "`layers.0.weight` is another `Parameter` of [3, 6]": _set(
        "layers.0.weight", nn.Parameter(torch.ones(3, 6))
    ),
    "`layers.0.bias` is missing": _set("layers.0.bias", None),
    "`head.bias` is missing": lambda m: delattr(m.head, "bias"),
    "`head.weight` and `layers.1.weight` are no longer one tensor": lambda m: setattr(
        m.head, "weight", nn.Parameter(m.head.weight.detach().clone())
    ),
    "class of `layers.0` is `ParametrizedLinear`": lambda m: parametrizations.weight_norm(m.again),
    "`weight` of `layers.0` is another `Tensor`": lambda m: weight_norm(m.layers[0]),
    "class of `head` is": lambda m: parametrizations.spectral_norm(m.head),
    "`layers.0` has a hook": lambda m: m.again.register_forward_hook(lambda *_: None),
    "`table.bn` has a hook": lambda m: m.table["bn"].register_forward_pre_hook(lambda *_: None),
    "`head` has a hook": lambda m: m.head.register_full_backward_hook(lambda *_: None),
    "`body` is called by itself": lambda m: m.body(torch.ones(5, 6)),
    "runs under forward-mode": lambda m: _dual(m, m.shard_inputs(**rows(5))),
    "transform of `torch.func`": lambda m: torch.func.grad(
        lambda x: m(x=x, y=torch.ones(5, 6).double())["loss"]
    )(torch.ones(5, 6).double()),
    "input `x` is a list": lambda m: m.shard_inputs(**{**rows(5), "x": rows(5)["x"].tolist()}),
}


@pytest.mark.parametrize("words", CHANGES)
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_change_that_no_program_carries_out_is_refused(pair: Pair, words: str) -> None:
    module = copy.deepcopy(pair.module)

    def changed() -> None:
        CHANGES[words](module)
        module(**module.shard_inputs(**rows(5)))

    code, message = refusal(changed)
    assert code in ("SH0605", "SH0613")
    assert words in message
    assert pair.step(rows(5)) < TOLERANCE


def test_a_module_that_was_changed_is_not_saved(pair: Pair) -> None:
    module = copy.deepcopy(pair.module)
    module.get_submodule("body").append(nn.Linear(6, 6))
    assert refusal(lambda: list(held(module).tensors()))[0] == "SH0613"
