"""The trainer beside plain loops of PyTorch, in float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch.distributed.checkpoint as dcp
import trained
import trainer_on_ranks
from spawn import spawn

from shardlang.runtime.errors import RunError
from shardlang.runtime.trainer.plain import PlainTrainee
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
    recipe = Recipe(0, "adamw", {"lr": 0.02, "clip": 0.5}, seed=2)
    trainer = plain(recipe, 0.2)
    dcp.load(dict(trainer.state()), checkpoint_id=scratch / "adam", no_dist=True)
    assert trainer.step_number == trainer_on_ranks.BREAK
    want = [loss for _, loss, _ in ran[0]["resumed"]["adam"]["later"]]
    assert [r.loss for r in trainer.steps(3)] == pytest.approx(want, rel=1e-12)


def test_a_run_that_has_not_begun_is_resumed_from_there() -> None:
    first = plain(Recipe(0, "adamw", {"lr": 0.1}, seed=2))
    before = first.state()["optimizer"].state_dict()
    assert not before["begun"]
    losses = [r.loss for r in first.steps(2)]
    again = plain(Recipe(0, "adamw", {"lr": 0.1}, seed=2))
    again.state()["optimizer"].load_state_dict(before)
    assert [r.loss for r in again.steps(2)] == losses


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
