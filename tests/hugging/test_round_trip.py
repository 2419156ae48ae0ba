"""A local directory, three steps on two processes, and a directory that `from_pretrained` loads."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from spawn import ROOT, spawn
from torch import Tensor

from shardlang.training.export import export
from tests.commands import shardlang

transformers = pytest.importorskip("transformers")
HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
from models import build, save  # noqa: E402
from round_trip import SPECS, batch, write_spec  # noqa: E402

Ran = tuple[list[dict[str, dict[str, Tensor]]], Path]
WEIGHTS = ("model.safetensors", "model.safetensors.index.json")


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """The whole weights on every rank, and the folder of all directories."""
    folder = tmp_path_factory.mktemp("round_trip")
    for name in SPECS:
        save(name, folder / name)
        write_spec(name, folder)
    paths = f"{ROOT}:{ROOT / 'tests' / 'runtime'}:{HERE}"
    job = "round_trip:everything"
    return spawn(job, 2, folder, 240, SCRATCH=str(folder), PYTHONPATH=paths), folder


def logits(model: torch.nn.Module) -> Tensor:
    """What a model says to a batch."""
    with torch.no_grad():
        found = model.eval()(**batch(9)).logits
    assert isinstance(found, Tensor)
    return found


@pytest.mark.parametrize("name", SPECS)
def test_an_export_is_the_trained_model(name: str, ran: Ran) -> None:
    """Of a checkpoint, in several files, and of the loaded module alike."""
    ranks, folder = ran
    want = build(name)
    before = logits(want)
    want.load_state_dict(ranks[0][name])
    assert not torch.equal(logits(want), before)
    done = export(folder / "runs" / name, folder / f"{name} out", file_bytes=4000)
    assert (done.step, done.model) == (3, type(want).__name__) and len(done.files) > 1
    for out in (folder / f"{name} out", folder / "exported" / name):
        found = type(want).from_pretrained(out)
        assert torch.equal(logits(found), logits(want))
        assert {x.dtype for x in found.parameters()} == {x.dtype for x in want.parameters()}
        assert found.generation_config.temperature == 0.7
        tokenizer = transformers.AutoTokenizer.from_pretrained(out)
        assert tokenizer("w3 w1 w30")["input_ids"] == [3, 1, 30]
        assert (out / WEIGHTS[0]).is_file() != (out / WEIGHTS[1]).is_file()


@pytest.mark.parametrize("name", ["gpt2", "mixtral"])
def test_the_files_hold_what_those_of_the_origin_hold(name: str, ran: Ran) -> None:
    """The same names, a tied tensor once, experts apart; and the same configuration."""
    _, folder = ran
    held = [
        json.loads((path / WEIGHTS[1]).read_text())["weight_map"].keys()
        for path in (folder / name, folder / f"{name} out")
    ]
    assert held[0] == held[1]
    for name_of in ("config.json", "generation_config.json", "tokenizer.json"):
        texts = [(path / name_of).read_text() for path in (folder / name, folder / f"{name} out")]
        assert json.loads(texts[0]) == json.loads(texts[1])


def test_the_command_says_what_it_wrote_and_refuses_what_is_not_its_own(ran: Ran) -> None:
    _, folder = ran
    step = folder / "runs/gpt2/checkpoints/step-000003"
    status, out, err = shardlang("export", step, folder / "by command")
    assert status == 0, err
    assert "of step 3" in out and "GPT2LMHeadModel.from_pretrained(" in out
    document = json.loads(shardlang("export", step, folder / "by command", "--json")[1])
    assert document["model"] == "GPT2LMHeadModel" and document["step"] == 3
    for target, said in (
        (folder / "t5", "is of another model, of type `t5`"),
        (folder / "gpt2", "the run began with the model in"),
    ):
        before = {path: path.read_bytes() for path in target.iterdir()}
        status, _, err = shardlang("export", step, target)
        assert status == 1 and "error[SH0609]" in err and said in " ".join(err.split())
        assert before == {path: path.read_bytes() for path in target.iterdir()}


def test_a_checkpoint_that_is_not_whole_is_no_export(ran: Ran, tmp_path: Path) -> None:
    status, _, err = shardlang("export", tmp_path, tmp_path / "out")
    assert status == 1 and "error[SH0661]" in err
    step = tmp_path / "step-000003"
    step.mkdir()
    for path in (ran[1] / "runs/gpt2/checkpoints/step-000003").iterdir():
        (step / path.name).write_bytes(path.read_bytes())
    damaged = next(step.glob("*.distcp"))
    damaged.write_bytes(damaged.read_bytes()[:-1])
    status, _, err = shardlang("export", step, tmp_path / "out")
    assert status == 1 and "error[SH0661]" in err and damaged.name in err
    assert not (tmp_path / "out").exists()
