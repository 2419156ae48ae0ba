"""What is half-written, cut off or changed is never taken for a checkpoint."""

from __future__ import annotations

import contextlib
import errno
import resource
import shutil
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from shardlang.runtime.checkpoint import files, folders
from shardlang.runtime.checkpoint.checkpoints import Checkpoints
from shardlang.runtime.errors import RunError
from shardlang.runtime.trainer.random_states import RandomStates


class Loop:
    """A small model in training."""

    def __init__(self, seed: int = 0) -> None:
        torch.manual_seed(seed)
        self.model = nn.Sequential(
            nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Dropout(), nn.Linear(5, 2)
        )
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.1)
        self.schedule = torch.optim.lr_scheduler.MultiStepLR(self.optimizer, [2, 3])
        self.state = {
            "model": self.model,
            "optimizer": self.optimizer,
            "schedule": self.schedule,
            "random": RandomStates(),
        }

    def steps(self, count: int) -> list[float]:
        """The losses of some steps."""
        return [self._step() for _ in range(count)]

    def _step(self) -> float:
        loss = self.model(torch.randn(4, 3)).square().mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.schedule.step()
        return loss.item()


class Said:
    """What checkpoints say."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def __call__(self, text: str) -> None:
        self.lines.append(text)


def saved(folder: Path | str, steps: int = 3, **how: int) -> Loop:
    """A loop with a checkpoint after each of its steps."""
    loop = Loop()
    with Checkpoints(folder, **how) as checkpoints:
        for step in range(1, steps + 1):
            loop.steps(1)
            checkpoints.save(step, loop.state)
    return loop


class Given:
    """A number that is saved."""

    def __init__(self, of: float) -> None:
        self.of = of

    def state_dict(self) -> dict[str, object]:
        """The number."""
        return {"of": self.of}

    def load_state_dict(self, state_dict: dict[str, float]) -> None:
        """Be that number."""
        self.of = state_dict["of"]


class Of:
    """Something whose state is what it was given."""

    def __init__(self, of: object) -> None:
        self.of = of

    def state_dict(self) -> object:
        """What was given."""
        return self.of

    def load_state_dict(self, state_dict: object) -> None:
        """Nothing."""


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two checkpoints."""
    folder = tmp_path_factory.mktemp("two")
    saved(folder, steps=2)
    return folder


@pytest.mark.parametrize("place", ["disk", "memory"])
def test_a_loop_resumes_to_the_bit(tmp_path: Path, place: str) -> None:
    folder = tmp_path if place == "disk" else f"memory://{tmp_path}"
    wanted = saved(folder, keep=2).steps(3)
    again = Loop(seed=9)
    checkpoints = Checkpoints(folder)
    assert checkpoints.steps() == [2, 3] and checkpoints.latest() == 3
    assert checkpoints.load(again.state) == 3
    assert again.steps(3) == wanted


def test_the_last_ones_and_every_so_many_are_kept(tmp_path: Path) -> None:
    saved(tmp_path, steps=5, keep=2, keep_every=2)
    assert Checkpoints(tmp_path).steps() == [2, 4, 5]


def cut(path: Path) -> None:
    """Lose the end of a file."""
    path.write_bytes(path.read_bytes()[:-7])


def flip(path: Path) -> None:
    """Change one bit."""
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)


@pytest.mark.parametrize(
    ("name", "harm", "why"),
    [
        ("__0_0.distcp", cut, "`__0_0.distcp` has "),
        ("__0_0.distcp", flip, "`__0_0.distcp` has changed: its checksum differs"),
        (".metadata", Path.unlink, "`.metadata` is missing"),
        ("values.json", flip, "`values.json` has changed: its checksum differs"),
        ("manifest.json", cut, "`manifest.json` is cut off or is no JSON"),
        ("manifest.json", flip, "`manifest.json` "),
        ("manifest.json", Path.unlink, "it has no manifest: it was not written to the end"),
    ],
)
def test_a_damaged_checkpoint_is_passed_over_and_said(
    two: Path, tmp_path: Path, name: str, harm: Callable[[Path], object], why: str
) -> None:
    shutil.copytree(two, tmp_path, dirs_exist_ok=True)
    harm(tmp_path / "step-000002" / name)
    said = Said()
    checkpoints = Checkpoints(tmp_path, say=said)
    assert checkpoints.latest() == 1  # whoever asks first and loads then is told once
    assert checkpoints.load(Loop().state) == 1
    (line,) = said.lines
    assert line.startswith(f"`step-000002` is passed over: {why}")
    with pytest.raises(RunError, match=r"the checkpoint of step 2 in .* is not whole") as caught:
        Checkpoints(tmp_path, say=said).load(Loop().state, 2)
    assert (caught.value.code, caught.value.help) == ("SH0661", "load one of the steps [1, 2]")


def test_where_none_is_whole_nothing_begins_anew(tmp_path: Path) -> None:
    assert Checkpoints(tmp_path).load(Loop().state) is None
    saved(tmp_path, steps=1)
    cut(tmp_path / "step-000001" / "values.json")
    with pytest.warns(RuntimeWarning, match="passed over"), pytest.raises(RunError) as caught:
        Checkpoints(tmp_path).load(Loop().state)
    assert caught.value.code == "SH0661"


def test_a_crash_while_saving_leaves_the_last_good_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process ends at a write: what is there of the draft is never taken, and is removed."""
    saved(tmp_path, steps=1)
    draft = tmp_path / ".draft-step-000002"
    draft.mkdir()
    (draft / "__0_0.distcp").write_bytes(b"half")
    (tmp_path / ".gone-step-000000").mkdir()
    said = Said()
    assert Checkpoints(tmp_path, say=said).latest() == 1
    assert sorted(said.lines) == [
        f"`{name}` is removed: it was not written to the end"
        for name in (".draft-step-000002", ".gone-step-000000")
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == [".saving", "step-000001"]


def test_the_draft_of_another_process_stays(tmp_path: Path) -> None:
    saved(tmp_path, steps=1)
    (tmp_path / ".draft-step-000002").mkdir()
    text = (
        "import fcntl, sys; f = open(sys.argv[1], 'ab'); fcntl.lockf(f, fcntl.LOCK_EX);"
        " print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", text, str(tmp_path / ".saving")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None and other.stdout.readline() == b"held\n"
        assert Checkpoints(tmp_path).latest() == 1
        assert (tmp_path / ".draft-step-000002").exists()
        checkpoints = Checkpoints(tmp_path)
        checkpoints.save(2, Loop().state)
        with pytest.raises(RunError, match="another process is saving") as caught:
            checkpoints.wait()
    assert caught.value.code == "SH0662"


def test_a_full_disk_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loop = saved(tmp_path, steps=1)
    checkpoints = Checkpoints(tmp_path)

    def full(self: files.Hashed, data: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(files.Hashed, "write", full)
        checkpoints.save(2, loop.state)
        with pytest.raises(
            RunError, match=r"step 2 cannot be written to .*: no space left"
        ) as caught:
            checkpoints.save(3, loop.state)
    assert caught.value.code == "SH0662" and "make room" in caught.value.help
    assert checkpoints.steps() == [1] and not (tmp_path / ".draft-step-000002").exists()
    checkpoints.save(3, loop.state)
    assert checkpoints.latest() == 3


def test_a_file_that_may_not_grow_is_said(tmp_path: Path) -> None:
    """The kernel's own refusal, in the middle of a file."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        checkpoints = Checkpoints(tmp_path)
        checkpoints.save(1, {"model": nn.Linear(64, 64)})
        with pytest.raises(RunError, match="file too large") as caught:
            checkpoints.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert caught.value.code == "SH0662" and checkpoints.latest() is None


def test_values_are_those_of_the_call_and_one_save_is_in_flight(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, may_write = nn.Linear(3, 2), threading.Event()
    before: list[Tensor] = [p.detach().clone() for p in model.parameters()]
    make = folders.Disk.make

    def slow(self: folders.Disk, name: str) -> None:
        if name.startswith(".draft"):
            may_write.wait(10)
        make(self, name)

    monkeypatch.setattr(folders.Disk, "make", slow)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, {"model": model})
    with torch.no_grad():
        for param in model.parameters():
            param.zero_()
    second = threading.Thread(target=checkpoints.save, args=(2, {"model": model}))
    second.start()
    second.join(0.05)
    assert second.is_alive()
    may_write.set()
    second.join()
    checkpoints.load({"model": model}, 1)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    checkpoints.load({"model": model})
    assert not any(p.any() for p in model.parameters())


def test_what_does_not_fit_is_said(tmp_path: Path) -> None:
    loop = saved(tmp_path, steps=1)
    cases: list[tuple[dict[str, object], str]] = [
        ({"model": nn.Linear(3, 5)}, "`model` is another model: `0.bias`, `0.weight`, `1.bias`"),
        ({"average": loop.model}, "the checkpoint of step 1 holds no `average`"),
        (
            {"model": loop.model, "optimizer": torch.optim.AdamW(loop.model[0].parameters())},
            "`1.bias` is trained in the checkpoint alone",
        ),
    ]
    for state, words in cases:
        with pytest.raises(RunError) as caught:
            Checkpoints(tmp_path).load(state)  # type: ignore[arg-type]
        assert caught.value.code == "SH0608" and words in caught.value.message
        assert caught.value.help


def test_what_cannot_be_kept_is_said(tmp_path: Path) -> None:
    class Odd(RandomStates):
        def state_dict(self) -> dict[str, object]:
            return {"open": {"file": sys.stdout}}

    alone = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1)
    for state, words in (
        ({"odd": Odd()}, "`odd.open.file` is a `"),
        ({"optimizer": alone}, "belongs to no module of this state"),
    ):
        with pytest.raises(RunError) as caught:
            Checkpoints(tmp_path).save(1, state)
        assert caught.value.code == "SH0663" and words in caught.value.message
    with pytest.raises(RunError, match="cannot be reached") as caught:
        Checkpoints("nowhere://at/all")
    assert caught.value.code == "SH0663"


def value(of: float) -> dict[str, Given]:
    """A state of one number."""
    return {"value": Given(of)}


def numbers(folder: Path, *steps: int, **how: int) -> Checkpoints:
    """Checkpoints whose state is their step."""
    made = Checkpoints(folder, say=Said(), **how)
    for step in steps:
        made.save(step, value(step))
    made.wait()
    return made


def held(folder: Path, step: int | None = None) -> float:
    """The number that a checkpoint holds."""
    state = value(-1.0)
    Checkpoints(folder, say=Said()).load(state, step)
    return state["value"].of


def test_a_step_that_is_saved_again_is_replaced(tmp_path: Path) -> None:
    made = numbers(tmp_path, 2, 4)
    made.save(4, value(0.5))
    made.wait()
    assert [held(tmp_path, 2), held(tmp_path)] == [2, 0.5]


@pytest.mark.parametrize("done", [0, 1])
def test_a_crash_while_one_is_replaced_leaves_the_old_or_the_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, done: int
) -> None:
    made, rename, count = numbers(tmp_path, 4), Path.rename, []

    def crash(self: Path, target: Path) -> Path:
        count.append(target)
        if len(count) > 1 + done:
            raise OSError(errno.EIO, "the power is gone")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", crash)
    monkeypatch.setattr(shutil, "rmtree", lambda path, **_: None)
    made.save(4, value(0.5))
    with contextlib.suppress(RunError):
        made.wait()
    monkeypatch.undo()
    assert held(tmp_path) == (0.5 if done else 4)
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["step-000004"]


def test_a_run_that_went_back_leaves_its_later_steps(tmp_path: Path) -> None:
    numbers(tmp_path, 2, 4, 6, 8)
    made = Checkpoints(tmp_path, keep=1, say=(said := Said()))
    made.load(value(0), step=4)
    made.save(5, value(5.5))
    made.wait()
    assert made.steps() == [5]
    assert held(tmp_path) == 5.5
    assert any("step-000008` is removed: the run went on" in line for line in said.lines)


def test_what_is_damaged_and_newer_does_not_take_the_place_of_what_is_saved(
    tmp_path: Path,
) -> None:
    numbers(tmp_path, 6, 8)
    (tmp_path / "step-000008" / "values.json").write_text("{}")
    made = Checkpoints(tmp_path, keep=1, say=Said())
    assert made.load(value(0)) == 6
    made.save(7, value(7))
    made.wait()
    assert (made.steps(), held(tmp_path)) == ([7], 7)


def test_nothing_of_another_run_is_overwritten(tmp_path: Path) -> None:
    numbers(tmp_path, 6)
    with pytest.raises(RunError, match="holds step 6 of another run") as error:
        numbers(tmp_path, 1)
    assert error.value.code == "SH0663"
    made = numbers(tmp_path, 7)
    with pytest.raises(RunError, match="step 6 comes before step 7"):
        made.save(6, value(6))


@pytest.mark.parametrize("step", [-1, 1.5, True, torch.tensor(2)])
def test_a_step_is_a_number_of_steps(tmp_path: Path, step: Any) -> None:
    made = numbers(tmp_path, 0)
    with pytest.raises(RunError, match="cannot be saved") as error:
        made.save(step, value(1))
    assert error.value.code == "SH0663"
    made.save(1, value(1))
    made.wait()


@pytest.mark.parametrize("how", [{"keep": 0}, {"keep": 1.5}, {"keep": True}, {"keep_every": 2}])
def test_what_stays_is_said_in_numbers(tmp_path: Path, how: Any) -> None:
    with pytest.raises(RunError) as error:
        Checkpoints(tmp_path, **how)
    assert error.value.code == "SH0663"


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"n": 3}, "`n` is a `int`, which has no `state_dict`"),
        ({3: Given(1)}, "the name 3 of a part"),
        ({"n": Of([1])}, "gives a `list`"),
        ({"n": Of({"x": torch.eye(3).to_sparse()})}, "`n.x` is a sparse tensor"),
    ],
)
def test_a_part_that_cannot_be_saved_is_named(tmp_path: Path, state: Any, message: str) -> None:
    with pytest.raises(RunError, match=message) as error:
        Checkpoints(tmp_path).save(1, state)
    assert error.value.code == "SH0663"


def test_a_step_that_is_not_there_is_said(tmp_path: Path) -> None:
    """And nothing else: none is passed over."""
    made = numbers(tmp_path, 2)
    with (
        warnings.catch_warnings(),
        pytest.raises(RunError, match="there is no checkpoint of step 5") as error,
    ):
        warnings.simplefilter("error")
        made.load(value(0), step=5)
    assert "[2]" in error.value.help
    (tmp_path / "step-000002").rename(tmp_path / "step-000009")
    with pytest.raises(RunError, match="its manifest is of step 2: it was renamed"):
        made.load(value(0))


def test_another_optimizer_is_refused(two: Path) -> None:
    loop = Loop()
    loop.state["optimizer"] = torch.optim.SGD(loop.model.parameters(), lr=0.1, momentum=0.9)
    with pytest.raises(RunError, match="it was `AdamW`, and is `SGD`") as error:
        Checkpoints(two).load(loop.state)
    assert error.value.code == "SH0608"
