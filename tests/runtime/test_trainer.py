"""The trainer beside plain loops of PyTorch, in float64."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import trained
import trainer_on_ranks
from spawn import spawn
from torch import Tensor, nn
from torch.optim import lr_scheduler

from shardlang.ir.optimizers import UpdateRule
from shardlang.ir.schedules import Phase, ends_before, schedulers
from shardlang.runtime.checkpoint.checkpoints import Checkpoints
from shardlang.runtime.errors import RunError
from shardlang.runtime.trainer.evaluation import Evaluating
from shardlang.runtime.trainer.learning_rate import LearningRate
from shardlang.runtime.trainer.plain import PlainTrainee
from shardlang.runtime.trainer.random_states import RandomStates
from shardlang.runtime.trainer.recipe import Recipe
from shardlang.runtime.trainer.stream import Counted
from shardlang.runtime.trainer.trainer import Trainer


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scratch")


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory, scratch: Path) -> list[Any]:
    out = tmp_path_factory.mktemp("ranks")
    return spawn("trainer_on_ranks:everything", 2, out, 200, SCRATCH=str(scratch))


def plain(recipe: Recipe, dropout: float = 0.0) -> Trainer:
    """The same training of the ordinary model, on this process."""
    trainee = PlainTrainee(trained.seeded(dropout), lambda m, batch: m(**batch)["loss"])
    return Trainer(trainee, trained.batches(), recipe)


@pytest.mark.parametrize("name", trainer_on_ranks.RESUMED)
def test_a_resumed_run_goes_on_bitwise(ran: list[Any], name: str) -> None:
    for rank in ran:
        found = rank["resumed"][name]
        assert found["later"] == found["losses"][trainer_on_ranks.BREAK :]
        assert [step for step, _, _ in found["losses"]] == [1, 2, 3, 4, 5]
        assert found["equal"]
        assert found["noise"] == 1
        assert found["steps"] == (trainer_on_ranks.LAST, trainer_on_ranks.LAST)


def test_the_plain_model_resumes_what_two_devices_saved(ran: list[Any], scratch: Path) -> None:
    """With an optimizer of torch, in a plain loop."""
    model = trained.seeded(0.2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.5)
    random = RandomStates()
    state = {"model": model, "optimizer": optimizer, "random": random}
    assert Checkpoints(scratch / "adam").load(state) == trainer_on_ranks.BREAK
    losses = []
    for batch in itertools.islice(trained.batches(), trainer_on_ranks.BREAK, trainer_on_ranks.LAST):
        loss = model(**batch)["loss"]
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    want = [loss for _, loss, _ in ran[0]["resumed"]["adam"]["later"]]
    assert losses == pytest.approx(want, rel=1e-12)


@pytest.mark.parametrize("begun", [False, True], ids=["from nothing", "back to the start"])
def test_a_run_that_has_not_begun_is_resumed_from_there(begun: bool, tmp_path: Path) -> None:
    """No states are states too: those of steps that were taken since are let go of."""
    text = "mesh { dp = 1 } optimizer adamw(lr = 0.1)"
    first, again = trained.program(text), trained.program(text)
    first.load()
    trainer = first.trainer(trained.batches(), seed=2)
    with first.checkpoints(tmp_path) as checkpoints:
        checkpoints.save(0, trainer.state())
    losses = [r.loss for r in trainer.steps(2)]
    again.load(seed=5)
    if begun:
        list(again.trainer(trained.batches(8)).steps(2))
    other = again.trainer(trained.batches(), seed=3)
    assert again.checkpoints(tmp_path).load(other.state()) == 0
    assert [r.loss for r in other.steps(2)] == losses


class Loop:
    """The recipe of `trainer_on_ranks`, in PyTorch's own words."""

    def __init__(self) -> None:
        self.model = trained.seeded()
        tied, others, plain = [self.model.embed.weight], [], []
        for name, x in self.model.named_parameters():
            if name.endswith("bias") or name.startswith("norm"):
                others.append(x)
            elif name != "embed.weight":
                plain.append(x)
        groups = [
            {"params": plain},
            {"params": others, "weight_decay": 0.0},
            {"params": tied, "lr": 0.05},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=0.02, weight_decay=0.3)
        warm = lr_scheduler.LinearLR(self.optimizer, start_factor=1 / 3, total_iters=2)
        down = [lr_scheduler.LambdaLR(self.optimizer, lambda k: 0.1 + 0.9 * _cosine(min(k, 4) / 4))]
        self.schedule = lr_scheduler.SequentialLR(self.optimizer, [warm, *down], [3])

    def step(self, batch: dict[str, Tensor]) -> float:
        loss = self.model(**batch)["loss"]
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 0.5)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.schedule.step()
        return float(loss.detach())

    def evaluate(self) -> float:
        """The loss of each token that counts, in the mean over all of them."""
        copied = copy.deepcopy(self.model).eval()
        total, count = 0.0, 0
        for batch in itertools.islice(trained.batches(seed=5), 3):
            kept = int((batch["labels"] != -100).sum())
            total, count = total + float(copied(**batch)["loss"].detach()) * kept, count + kept
        return total / count


def _cosine(done: float) -> float:
    return (1 + math.cos(math.pi * done)) / 2


@pytest.mark.parametrize("name", trainer_on_ranks.STATED)
def test_a_run_is_the_plain_loop(ran: list[Any], name: str) -> None:
    """Groups, schedule, clipping and evaluations, in float64 on two devices."""
    loop, losses, rates, evaluated = Loop(), [], [], []
    for i, batch in enumerate(itertools.islice(trained.batches(), trainer_on_ranks.TAKEN)):
        rates.append(loop.optimizer.param_groups[0]["lr"])
        losses.append(loop.step(batch))
        evaluated += [loop.evaluate()] if i % 2 else []
    for rank in ran:
        found = rank["stated"][name]
        assert found["rates"] == pytest.approx(rates, rel=1e-12)
        assert found["losses"] == pytest.approx(losses, rel=1e-10)
        assert found["evaluated"][::2] == [None] * 4
        assert all(0 < exposed < step for exposed, step in found["exposed"])
        assert found["evaluated"][1::2] == pytest.approx(evaluated, rel=1e-10)
        for key, x in loop.model.named_parameters():
            torch.testing.assert_close(found["params"][key], x.detach(), rtol=1e-9, atol=1e-11)
        assert found["first rate"] == found["rates"][0]
        mine = found["by hand"]
        assert mine == (found["rates"][:4], found["losses"][:4])
        assert found["calls"] == trainer_on_ranks.TAKEN


def test_an_evaluation_changes_nothing() -> None:
    """Neither dropout's draws, nor a count of calls, nor the mode of one module that is off."""
    rule = UpdateRule("sgd", {"lr": 0.1})
    runs = []
    for when in (None, Evaluating(1, 2, trained.batches)):
        trainer = plain(Recipe(rule=rule, seed=2), 0.3)
        trainer.evaluating = when
        trainer.trainee.module.get_submodule("norm").eval()
        losses = [r.loss for r in trainer.steps(4)]
        norm = trainer.trainee.module.get_submodule("norm")
        runs.append((losses, float(trainer.trainee.module.get_buffer("calls")), norm.training))
    assert runs[0] == runs[1]
    assert runs[0][1:] == (4.0, False)


class Shifted(trained.Model):
    """The model, whose loss leaves out the first label of a row, as causal language models do."""

    def forward(self, ids: Tensor, labels: Tensor) -> dict[str, Tensor]:
        later = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=-100)
        return super().forward(ids, later)


@pytest.mark.parametrize("rows", [5, 1])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_loss_of_an_evaluation_does_not_depend_on_microbatches(count: int, rows: int) -> None:
    """Neither where the model counts other labels, nor with fewer rows than microbatches."""
    stated = f"mesh {{ dp = 1 }} accumulate {count}" if count > 1 else "mesh { dp = 1 }"
    program = trained.program(stated, model=Shifted)
    batch = {key: x[:rows] for key, x in next(trained.batches(seed=3)).items()}
    batch["labels"][0, 1:3], batch["labels"][-1, 1] = -100, -100
    want = trained.seeded(model=Shifted).eval()(**batch)["loss"]
    program.load()
    trainer = program.trainer(evaluating=Evaluating(1, 1, lambda: [batch]))
    found = trainer.evaluate()
    assert found.loss == pytest.approx(float(want.detach()), rel=1e-14)
    assert found.tokens == int((batch["labels"] != -100).sum())


def test_an_evaluation_says_what_it_misses() -> None:
    trainer = plain(Recipe())
    with pytest.raises(RunError, match="nothing says what to evaluate on"):
        trainer.evaluate()
    trainer.evaluating = Evaluating(1, 2, lambda: [])
    with pytest.raises(RunError, match="no batch with a token that counts") as caught:
        trainer.evaluate()
    assert caught.value.code == "SH0605"


PHASES: dict[str, tuple[list[Phase], Callable[[Any], Any]]] = {
    "cosine": (
        [Phase("cosine", {"steps": 6, "to": 0.01})],
        lambda o: lr_scheduler.CosineAnnealingLR(o, 6, 0.01),
    ),
    "linear": (
        [Phase("linear", {"steps": 5})],
        lambda o: lr_scheduler.LinearLR(o, 1.0, 0.0, 5),
    ),
    "three": (
        [
            Phase("warmup", {"steps": 4}),
            Phase("constant", {"steps": 2}),
            Phase("linear", {"steps": 3, "to": 0.05}),
        ],
        lambda o: lr_scheduler.SequentialLR(
            o,
            [lr_scheduler.LinearLR(o, 0.25, 1.0, 3), lr_scheduler.ConstantLR(o, 1.0, 1),
             lr_scheduler.LinearLR(o, 1.0, 0.5, 3)],
            [4, 6],
        ),
    ),
}  # fmt: skip
NAMED: dict[str, dict[str, Any]] = {
    "constantlr": {"factor": 0.5, "total_iters": 3},
    "cosineannealinglr": {"T_max": 5, "eta_min": 0.01},
    "cosineannealingwarmrestarts": {"T_0": 3, "T_mult": 2},
    "cycliclr": {"base_lr": 0.01, "max_lr": 0.2, "step_size_up": 3, "mode": "triangular2"},
    "exponentiallr": {"gamma": 0.8},
    "linearlr": {"total_iters": 4},
    "multisteplr": {"milestones": (2, 5), "gamma": 0.5},
    "onecyclelr": {"max_lr": 0.3, "total_steps": 12},
    "polynomiallr": {"total_iters": 6, "power": 2.0},
    "steplr": {"step_size": 2, "gamma": 0.7},
}


def _sgd() -> torch.optim.Optimizer:
    groups = [{"params": [torch.zeros(2)]}, {"params": [torch.zeros(3)], "lr": 0.2}]
    return torch.optim.SGD(groups, lr=0.1, momentum=0.9)


def _settings(optimizer: torch.optim.Optimizer) -> list[tuple[float, float]]:
    return [(group["lr"], group["momentum"]) for group in optimizer.param_groups]


@pytest.mark.parametrize("name", PHASES)
def test_phases_are_the_schedulers_of_torch(name: str) -> None:
    phases, make = PHASES[name]
    mine, own = torch.optim.SGD([torch.zeros(2)], lr=0.1), torch.optim.SGD([torch.zeros(2)], lr=0.1)
    schedule, want = LearningRate(mine, phases), make(own)
    last = sum(int(str(phase.arguments["steps"])) for phase in phases)
    for _ in range(last + 1):
        assert schedule.rate == pytest.approx(own.param_groups[0]["lr"], rel=1e-12, abs=1e-18)
        own.step()
        mine.step()
        want.step()
        schedule.step()
    end = schedule.rate
    mine.step()
    schedule.step()
    assert schedule.rate == end


@pytest.mark.parametrize("name", sorted(schedulers()))
def test_a_scheduler_by_name_is_that_of_torch(name: str) -> None:
    """Each of this torch, with a break after three steps."""
    mine, own = _sgd(), _sgd()
    schedule = LearningRate(mine, [Phase(name, NAMED[name])])
    want = schedulers()[name](own, **NAMED[name])
    for i in range(10):
        assert _settings(mine) == _settings(own)
        if i == 3:
            saved, groups = schedule.state_dict(), copy.deepcopy(mine.state_dict())
            mine = _sgd()
            schedule = LearningRate(mine, [Phase(name, NAMED[name])])
            mine.load_state_dict(groups)
            schedule.load_state_dict(saved)
        own.step()
        mine.step()
        want.step()
        schedule.step()


def _stepped(phases: list[Phase], count: int) -> tuple[torch.optim.Optimizer, LearningRate]:
    optimizer = _sgd()
    schedule = LearningRate(optimizer, phases)
    for _ in range(count):
        optimizer.step()
        schedule.step()
    return optimizer, schedule


WARM = [Phase("warmup", {"steps": 3}), Phase("cosine", {"steps": 9, "to": 0.0})]


@pytest.mark.parametrize("then", [[], WARM, [Phase("constant", {"steps": 2})], WARM[1:]])
@pytest.mark.parametrize("before", [[], WARM, [Phase("linear", {"steps": 20, "to": 0.0})]])
def test_another_schedule_holds_from_the_next_step(before: list[Phase], then: list[Phase]) -> None:
    """Every rate is what it would be, had the new schedule been there from the first step."""
    old, saved = _stepped(before, 5)
    mine, schedule = _stepped(then, 0)
    mine.load_state_dict(copy.deepcopy(old.state_dict()))
    schedule.load_state_dict(saved.state_dict())
    want, ahead = _stepped(then, 5)
    for _ in range(4):
        assert _settings(mine) == _settings(want)
        for optimizer, one in ((mine, schedule), (want, ahead)):
            optimizer.step()
            one.step()


def test_a_rate_that_a_loop_has_set_itself_stays() -> None:
    old, saved = _stepped([], 2)
    old.param_groups[0]["lr"] = 0.7
    mine, schedule = _stepped([], 0)
    mine.load_state_dict(copy.deepcopy(old.state_dict()))
    schedule.load_state_dict(saved.state_dict())
    assert schedule.rate == 0.7


STEPLR = [Phase("steplr", {"step_size": 2, "gamma": 0.5})]


@pytest.mark.parametrize(
    ("before", "then"),
    [(STEPLR, WARM), (WARM, STEPLR), ([], STEPLR), (STEPLR, []),
     (STEPLR, [Phase("steplr", {"step_size": 2, "gamma": 0.1})])],
)  # fmt: skip
def test_another_scheduler_of_torch_is_refused(before: list[Phase], then: list[Phase]) -> None:
    """It would go on with the settings of the one before, or not at all."""
    _, saved = _stepped(before, 5)
    _, schedule = _stepped(then, 0)
    with pytest.raises(RunError, match="goes on from its own state alone") as caught:
        schedule.load_state_dict(saved.state_dict())
    assert caught.value.code == "SH0665"


def test_a_scheduler_that_ends_before_the_run_is_refused_before_the_first_step() -> None:
    ends = Phase("onecyclelr", {"max_lr": 0.2, "total_steps": 4})
    rule = UpdateRule("sgd", {"lr": 0.1, "momentum": 0.9})
    trainer = plain(Recipe(rule=rule, phases=(ends,)))
    with pytest.raises(RunError, match="`onecyclelr` ends before step 5") as caught:
        trainer.steps(5)
    assert (caught.value.code, caught.value.about) == ("SH0646", "learning_rate")
    assert len(list(trainer.steps(3))) == 3
    with pytest.raises(RunError, match="ends before step 5"):
        trainer.steps(2)
    assert len(list(trainer.steps(1))) == 1


@pytest.mark.parametrize("name", sorted(schedulers()))
def test_the_last_step_alone_says_whether_a_scheduler_lasts(name: str) -> None:
    """It raises there if and only if it does so on the way."""
    optimizer = _sgd()
    schedule = schedulers()[name](optimizer, **NAMED[name])
    for step in range(1, 30):
        said = ends_before(name, NAMED[name], step)
        optimizer.step()
        if said:
            with pytest.raises(ValueError, match="step"):
                schedule.step()
            break
        schedule.step()
    assert (step == 13) == (name == "onecyclelr") and (said != "") == (name == "onecyclelr")


def test_steps_are_a_number() -> None:
    trainer = plain(Recipe())
    for wrong in ("a", 1.0, None, True):
        with pytest.raises(TypeError, match="a number of steps"):
            trainer.steps(wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least 0, not -1"):
        trainer.steps(-1)
    assert list(trainer.steps(0)) == []


def test_the_peak_of_memory_is_that_of_each_step() -> None:
    """One step among others takes 256 MiB, and gives them back."""
    large = iter([False, False, True, False])

    def loss_of(module: nn.Module, batch: Any) -> Tensor:
        more = torch.ones(2**26 if next(large) else 1)
        return module(**batch)["loss"] + 0 * more[0]

    trainer = Trainer(PlainTrainee(trained.seeded(), loss_of), trained.batches(), Recipe(0))
    _, before, at, after = (record.peak_bytes for record in trainer.steps(4))
    assert at - before > 200 * 2**20
    assert at - after > 200 * 2**20


def test_a_batch_that_was_read_ahead_is_not_counted() -> None:
    """A loop that ends has often read a batch that it did not use."""
    given = Counted(trained.batches())
    trainee = PlainTrainee(trained.seeded(), lambda m, batch: m(**batch)["loss"])

    def ahead(batches: Any) -> Any:
        held = next(batches)
        for batch in batches:
            yield held
            held = batch

    trainer = Trainer(trainee, given, Recipe(0), around=ahead)
    list(trainer.steps(2))
    assert trainer.state()["data"].state_dict() == {"batches": 2}
    assert given.state_dict() == {"batches": 3}


def test_batches_that_are_gone_are_missed() -> None:
    with pytest.raises(RunError, match="there are 2 batches, and the run is to go on after 3"):
        Counted([{}, {}]).load_state_dict({"batches": 3})
    stream = Counted([{}, {}])
    next(stream)
    with pytest.raises(RunError, match="1 batches were given, and the run is to go on after 0"):
        stream.load_state_dict({"batches": 0})
