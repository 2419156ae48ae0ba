"""The loaded module is called as the plain model is: right, or refused with one message."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path

import pytest
import torch
from called import DP, Net, Pair, Replacing, refusal, rows
from spawn import spawn

import shardlang
from shardlang.ir.optimizers import UpdateRule
from shardlang.runtime import kept
from shardlang.runtime.optim import ShardedOptimizer
from shardlang.runtime.replicas import checksum
from tests.broad import broad

TOLERANCE = 1e-10


def wrong(gaps: dict[str, float]) -> dict[str, float]:
    return {name: gap for name, gap in gaps.items() if not gap <= TOLERANCE}


@broad
def test_calls_on_four_devices(tmp_path: Path) -> None:
    """Modes and gradients on a mesh of two axes, with storage."""
    for found in spawn("called:on_a_grid", 4, tmp_path, 300):
        assert wrong(found) == {}
        assert len(found) > 15


def test_calls_on_two_devices(tmp_path: Path) -> None:
    """Modes, sizes, arguments, gradients, buffers and draws; then ranks that differ."""
    for found in spawn("called:everything", 2, tmp_path, 300):
        assert wrong(found["gaps"]) == {}
        assert len(found["gaps"]) > 40
        refused = found["refused"]
        codes = {name: code for name, (code, _) in refused.items()}
        assert codes == {
            "values": "SH0612",
            "sizes": "SH0612",
            "replicas": "SH0611",
            "shards": "SH0611",
            "modes": "SH0612",
            "draws": "SH0612",
            "frozen": "SH0612",
            "arguments": "SH0612",
            "whole inputs": "SH0612",
            "whole inputs, alike": "",
            "unmarked": "SH0605",
            "twice": "SH0613",
        }, refused
        assert "`x` has other values on rank 1 than on rank 0" in refused["values"][1]
        assert "rank 0 with x : f64[5, 6], rank 1 with x : f64[6, 6]" in refused["sizes"][1]
        assert "`w` has other values on rank 1 than on rank 0" in refused["replicas"][1]
        assert "`w` begins with other values on rank 1 than on rank 0" in refused["shards"][1]
        assert "rank 1 with the model in evaluation mode" in refused["modes"][1]
        assert "rank 1 with `up.weight` frozen" in refused["frozen"][1]
        assert "input `x` has other values on rank 1 than on rank 0" in refused["whole inputs"][1]
        assert found["changed"]
        assert "cut whole inputs with `shard_inputs`" in refused["unmarked"][1]


@pytest.fixture(scope="module")
def pair() -> Pair:
    return Pair(DP)


def test_programs_are_few_and_many_values_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """A schedule that is passed as a number would compile at every step, without end."""
    monkeypatch.setattr(kept, "MOST_PROGRAMS", 3)
    monkeypatch.setattr(kept, "MANY_VALUES", 4)
    pair = Pair(DP)
    made = pair.module._shardlang.variants._loaded
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for step in (1, 2, 3, 2, 3, 4, 5, 1):
            assert pair.step(rows(5), weight=0.5 * step) < TOLERANCE
            assert len(list(made.items())) <= 3
        for count in (4, 6, 7, 5):
            assert pair.step(rows(count)) < TOLERANCE
    assert made.declared in dict(made.items())
    texts = [str(w.message) for w in said if issubclass(w.category, RuntimeWarning)]
    assert len(texts) == 2, texts
    assert "argument `weight` has had 4 values" in texts[0]
    assert "`input weight : f32[] []`" in texts[0] and "`torch.tensor(weight)`" in texts[0]
    assert "shape of the inputs has had 4 values" in texts[1] and "pad them" in texts[1]


def test_a_number_that_is_declared_as_an_input_has_one_program() -> None:
    pair = Pair(DP + "input weight : f64[] []\n")
    made = pair.module._shardlang.variants._loaded
    for step in (1, 2, 3):
        weight = torch.tensor(0.1 * step, dtype=torch.float64)
        assert pair.step({**rows(5), "weight": weight}) < TOLERANCE
    assert len(list(made.items())) == 1


def test_what_no_program_can_answer_is_refused(pair: Pair) -> None:
    module, batch = pair.module, rows(5)
    mask = torch.ones(5, dtype=torch.float64)

    def under_autocast() -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            module(**module.shard_inputs(**batch))

    found = {
        "`mask` | add `input mask : f64[5] [dp]`": lambda: module.shard_inputs(**batch, mask=mask),
        "`mask` |": lambda: module(**batch, mask=mask),
        "no input `weigth` | did you mean `weight`": lambda: module(**batch, weigth=2.0),
        "lacks the input `x`": lambda: module.shard_inputs(y=batch["y"]),
        "`x` is f32, and the spec declares f64": lambda: module(batch["x"].float(), batch["y"]),
        "argument `kind` is a `object`": lambda: module(**batch, kind=object()),
        "`x` by position and by name": lambda: module(batch["x"], **batch),
        "passes 6 arguments": lambda: module(*[batch["x"]] * 6),
        "runs under autocast": under_autocast,
    }
    for words, call in found.items():
        code, message = refusal(call)
        assert code in ("SH0605", "SH0613"), words
        assert words in message, message
    module.float()
    assert "`up.weight` is f32 now" in refusal(lambda: module(**batch))[1]
    module.double()
    assert pair.step(batch) < TOLERANCE


class Stubborn(Net):
    """Keeps its batch norm frozen, whatever the mode."""

    def train(self, mode: bool = True) -> Stubborn:
        """Batch norm stays in evaluation mode."""
        super().train(mode)
        self.bn.eval()
        return self


class Merging(Net):
    """Remembers more than its mode."""

    merged = False

    def train(self, mode: bool = True) -> Merging:
        """As adapters do that are merged into the weights for evaluation."""
        self.merged = not mode
        super().train(mode)
        return self


def test_the_models_own_train_is_followed_or_refused() -> None:
    pair = Pair(DP, Stubborn)
    for model in pair.both():
        model.eval()
        model.train()
    assert not pair.module.get_submodule("bn").training
    assert pair.step(rows(5)) < TOLERANCE
    code, message = refusal(lambda: Pair(DP, Merging).module.eval())
    assert code == "SH0613"
    assert "changes more than modes" in message


def test_a_model_that_is_handed_in_keeps_its_modes(tmp_path: Path) -> None:
    """A model in evaluation mode, as `from_pretrained` gives it, and one whose norm is frozen."""
    path = tmp_path / "spec.shard"
    path.write_text(DP.format(n=1))
    for evaluated in ("", "bn"):
        plain = Net().double()
        plain.get_submodule(evaluated).eval()
        module = shardlang.compile(path, model=plain).load()
        flags = {name: part.training for name, part in plain.named_modules()}
        assert {name: module.get_submodule(name).training for name in flags} == flags
        for model in (module, plain, module.train(), plain.train()):
            model.zero_grad()
        torch.manual_seed(1)
        mine = module(**module.shard_inputs(**rows(5)))["loss"]
        torch.manual_seed(1)
        torch.testing.assert_close(mine, plain(**rows(5))["loss"])


def test_a_first_call_without_gradients_makes_no_program_without_them(pair: Pair) -> None:
    with torch.inference_mode():
        assert pair.step(rows(9)) < TOLERANCE
    with torch.no_grad():
        assert pair.step(rows(10)) < TOLERANCE
    assert pair.step(rows(9)) < TOLERANCE
    assert pair.step(rows(10)) < TOLERANCE
    assert all(param.grad is not None for param in pair.module.parameters())


def test_a_program_made_in_inference_mode_is_like_any_other(tmp_path: Path) -> None:
    path = tmp_path / "spec.shard"
    path.write_text("mesh { d = 1 }\ninput input : f64[5, 4] [d, _]\n")
    with torch.inference_mode():
        program = shardlang.compile(path, model=lambda: torch.nn.Linear(4, 3).double())
        assert program.verify().ok
        module = program.load()
    module(torch.ones(5, 4, dtype=torch.float64)).sum().backward()
    assert all(param.grad is not None for param in module.parameters())


def test_a_replaced_buffer_under_two_names_is_refused() -> None:
    class Twice(Replacing):
        def __init__(self) -> None:
            super().__init__()
            self.double().register_buffer("other", self.scale)

    with pytest.raises(shardlang.CompileError, match="replaces the buffer `scale`, which is"):
        Pair(DP, Twice)


def test_one_device_has_plain_tensors_alone(pair: Pair) -> None:
    batch = pair.module.shard_inputs(**rows(5))
    for value in (*batch.values(), *pair.module(**batch).values(), *pair.module.parameters()):
        assert type(value) in (torch.Tensor, torch.nn.Parameter)


def test_a_copy_is_called_apart() -> None:
    pair = Pair(DP, Replacing)
    copied = copy.deepcopy(pair.module)
    copied(**copied.shard_inputs(**rows(5)))
    assert copied.get_buffer("steps").item() == 1
    assert pair.module.get_buffer("steps").item() == 0


def test_a_checksum_follows_the_values() -> None:
    big = torch.arange(10**6, dtype=torch.float64)
    assert checksum(big) == checksum(big.clone())
    assert checksum(big) != checksum(big + 1)
    assert checksum(big.view(1000, 1000).t()) == checksum(big.view(1000, 1000).t().contiguous())
    for value in (torch.zeros(0), torch.tensor(True), torch.ones(2, dtype=torch.bfloat16)):
        assert checksum(value) == checksum(value.clone())


def test_the_norm_counts_what_is_trained_later() -> None:
    pair = Pair(DP, lambda: Net(frozen=True))
    for model in pair.both():
        model.requires_grad_(True)
    assert pair.step(rows(5)) < TOLERANCE
    grads = [param.grad for param in pair.plain.parameters() if param.grad is not None]
    want = torch.cat([grad.flatten() for grad in grads]).norm()
    optimizer = ShardedOptimizer(pair.module, UpdateRule("sgd"))
    optimizer.load()
    torch.testing.assert_close(optimizer.norm(), want)


ALONE = {
    "fits on one": ("SH0605", "rank 0 failed: input `x` is [2, 6], and this device's shard is [3"),
    "object": ("SH0613", "rank 1 failed: the argument `kind` is a `object`"),
    "unknown": ("SH0613", "rank 1 failed: the model takes no input `w`"),
    "work": ("SH0603", "rank 1 failed: IndexError: list index out of range (alone.py"),
    "lies": ("SH0612", "rank 0 with `y` laid out as [5, 6], rank 1 with `y` laid out as [5@dp, 6]"),
    "gradients": ("SH0612", "rank 0 with gradients off"),
    "setting": ("SH0613", "rank 1 failed: `eps` of `bn` is `0.5` now"),
    "setting, compiled": ("SH0613", "rank 1 failed: `eps` of `bn` is `0.5` now"),
    "saved": ("SH0613", "rank 1 failed: `eps` of `bn` is `0.5` now"),
    "parameter": ("SH0613", "rank 1 failed: `up.weight` is another `Parameter`"),
    "new program": ("SH0603", "rank 1 failed: MemoryError: no room"),
    "weights": ("SH0603", "rank 1 failed: CaptureError: `model.safetensors` cannot be read"),
    "after": ("", "True"),
}


def test_what_one_rank_refuses_all_refuse_and_compiled_calls_are_right(tmp_path: Path) -> None:
    """No rank waits for one that does not come; outputs and checks are the same if compiled."""
    for rank, found in enumerate(spawn("alone:everything", 2, tmp_path, 200)):
        for name, (code, words) in ALONE.items():
            got, message = found["refused"][name]
            assert got == code, (rank, name, message)
            assert words in message, (rank, name, message)
        assert wrong(found["compiled"]) == {}
        assert len(found["compiled"]) == 5


class Unread(torch.nn.Module):
    """One parameter gets no gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.unread = torch.nn.Linear(3, 2), torch.nn.Parameter(torch.ones(2))

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": (self.up(x) + self.unread.detach()).square().sum()}


def test_a_hook_of_a_parameter_without_a_gradient_is_not_called(tmp_path: Path) -> None:
    spec = tmp_path / "spec.shard"
    spec.write_text("mesh { dp = 1 }\ninput x : f32[4, 3] [dp, _]\n")
    module = shardlang.compile(spec, model=Unread).load()
    seen: list[str] = []
    for name, param in module.named_parameters():
        param.register_hook(lambda _, name=name: seen.append(name))
    module(x=torch.randn(4, 3))["loss"].backward()
    assert sorted(seen) == ["up.bias", "up.weight"]
    assert module.unread.grad is None
