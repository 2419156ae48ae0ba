"""A folder of weights is whole at every moment of a save, and takes nothing that is not its own."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from shardlang.capture.checkpoint import tensor_files
from shardlang.runtime.errors import RunError
from shardlang.runtime.folder import DRAFTS, FILE, INDEX, Drafts, check_folder

NAMES = ("a", "b", "c")
SHAPES = dict.fromkeys(NAMES, (2,))


class CrashError(BaseException):
    """The process is killed here."""


def put(folder: Path, value: float, files: int) -> None:
    """Save a model whose every tensor holds one value, in one file or one file for each."""
    drafts = Drafts(folder)
    tensors = {name: torch.full((2,), value) for name in NAMES}
    groups = [NAMES] if files == 1 else [(name,) for name in NAMES]
    written = []
    for number, names in enumerate(groups):
        save_file({n: tensors[n] for n in names}, drafts.path / f"draft-{number}.safetensors")
        written.append((f"draft-{number}.safetensors", names))
    (drafts.path / "config.json").write_text("{}")
    drafts.commit(written, 24)


def ours(folder: Path) -> dict[str, torch.Tensor]:
    """What this project reads: the index first."""
    return {name: load_file(path)[name] for name, path in tensor_files(folder).items()}


def theirs(folder: Path) -> dict[str, torch.Tensor]:
    """What transformers reads: `model.safetensors` first."""
    if (folder / FILE).is_file():
        return load_file(folder / FILE)
    places = json.loads((folder / INDEX).read_text())["weight_map"]
    return {name: load_file(folder / file)[name] for name, file in places.items()}


@pytest.mark.parametrize("files", [(1, 1), (1, 3), (3, 1), (3, 3)])
def test_a_kill_at_any_moment_leaves_one_model(
    files: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps, count = SimpleNamespace(left=0), 0
    for method in ("replace", "unlink"):
        real = getattr(Path, method)

        def step(path: Path, *args: object, _real: object = real, **more: object) -> object:
            steps.left -= 1
            if steps.left == 0:
                raise CrashError
            return _real(path, *args, **more)  # type: ignore[operator]

        monkeypatch.setattr(Path, method, step)
    while True:
        count += 1
        folder = tmp_path / str(count)
        put(folder, 1.0, files[0])
        steps.left = count
        try:
            put(folder, 2.0, files[1])
        except CrashError:
            pass
        else:
            break
        steps.left = 0
        for found in (ours(folder), theirs(folder)):
            values = {float(x) for tensor in found.values() for x in tensor}
            assert found.keys() == set(NAMES) and values in ({1.0}, {2.0})
        check_folder(folder, SHAPES, 24)
        put(folder, 3.0, files[1])
        assert {float(x) for x in torch.cat(list(ours(folder).values()))} == {3.0}
    assert count > 2
    names = sorted(path.name for path in folder.iterdir())
    assert names == sorted(["config.json", *([FILE] if files[1] == 1 else [INDEX, *names[1:4]])])


@pytest.mark.parametrize(
    ("held", "said"),
    [
        ({"x": (2,)}, "holds another model's weights, such as `x`"),
        ({"a": (3,)}, "`a` is [3] instead of [2]"),
        (None, "cannot be read"),
    ],
)
def test_another_models_folder_is_refused_and_left(
    held: dict[str, tuple[int, ...]] | None, said: str, tmp_path: Path
) -> None:
    path = tmp_path / "model-00001-of-00002.safetensors"
    if held is None:
        path.write_bytes(b"none")
    else:
        save_file({name: torch.zeros(shape) for name, shape in held.items()}, path)
    before = path.read_bytes()
    with pytest.raises(RunError) as caught:
        check_folder(tmp_path, SHAPES, 24)
    assert caught.value.code == "SH0609" and said in caught.value.message
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    assert path.read_bytes() == before


def test_other_files_stay_and_half_a_save_is_cleared(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("mine")
    (tmp_path / DRAFTS).mkdir()
    (tmp_path / DRAFTS / "draft-0.safetensors").write_text("half")
    put(tmp_path, 1.0, 1)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["README.md", "config.json", FILE]


def test_too_little_room_is_said_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=2**20))
    with pytest.raises(RunError, match=r"take 24 bytes, and .* has room for 1,048,576"):
        check_folder(tmp_path, SHAPES, 24)
    with pytest.raises(RunError, match="not a directory"):
        check_folder(Path(__file__) / "w", SHAPES, 24)
