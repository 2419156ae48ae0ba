"""Files of weights that are written one tensor at a time are those that safetensors reads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, safe_open
from torch import Tensor

from shardlang.runtime.errors import RunError
from shardlang.runtime.folder import INDEX
from shardlang.runtime.save import Format, check_room, write
from shardlang.runtime.weight_files import _TYPES, Kept, in_files

TENSORS = {
    **{str(dtype): torch.arange(-3, 4).abs().to(dtype).reshape(1, 7) for dtype in _TYPES},
    "a number": torch.tensor(-2.5, dtype=torch.float64), "empty": torch.empty(0, 3),
    "turned": torch.arange(12.0).reshape(3, 4).t(),
}  # fmt: skip


def kept(tensors: dict[str, Tensor]) -> list[Kept]:
    return [Kept(name, tuple(x.shape), x.dtype) for name, x in tensors.items()]


def bits(tensor: Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize("file_bytes", [10**6, 60])
def test_every_type_and_shape_comes_back(file_bytes: int, tmp_path: Path) -> None:
    format = Format(metadata={"tokens": "bytes"}, file_bytes=file_bytes)
    files = write(kept(TENSORS), TENSORS.__getitem__, tmp_path, format)
    assert (len(files) > 5) == (file_bytes < 100) == (tmp_path / INDEX).is_file()
    found = {name: value for file in files for name, value in load_file(file).items()}
    assert list(found.keys() ^ TENSORS.keys()) == []
    for name, value in TENSORS.items():
        assert found[name].dtype == value.dtype and found[name].shape == value.shape
        assert bits(found[name]) == bits(value), name
    with safe_open(files[0], "pt") as file:
        assert file.metadata() == {"format": "pt", "tokens": "bytes"}


def test_files_are_no_larger_than_they_may_be() -> None:
    sizes = [3, 9, 2, 2, 20, 1, 1]
    groups = in_files([Kept(str(n), (n,), torch.uint8) for n in sizes], 10)
    found = [[one.size_bytes for one in group] for group in groups]
    assert found == [[3], [9], [2, 2], [20], [1, 1]]


def test_a_tensor_may_be_stored_in_parts_under_other_names(tmp_path: Path) -> None:
    def apart(name: str, tensor: Tensor) -> dict[str, Tensor]:
        return {f"{name}.{i}": part for i, part in enumerate(tensor)}

    given = {"experts": torch.randn(3, 2, 5), "gates": torch.randn(2, 4)}
    write(kept(given), given.__getitem__, tmp_path, Format(stored_as=apart, file_bytes=50))
    places = json.loads((tmp_path / INDEX).read_text())["weight_map"]
    for name, value in given.items():
        for i, part in enumerate(value):
            stored = load_file(tmp_path / places[f"{name}.{i}"])[f"{name}.{i}"]
            assert torch.equal(stored, part)


def test_what_fails_half_way_leaves_the_folder_as_it_was(tmp_path: Path) -> None:
    given = {"a": torch.ones(3), "b": torch.ones(2)}
    write(kept(given), given.__getitem__, tmp_path, Format())
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(KeyError, match="b"):
        write(kept(given), {"a": torch.zeros(3)}.__getitem__, tmp_path, Format())
    odd = {"a": torch.ones(3), "b": torch.ones(2, dtype=torch.complex128)}
    with pytest.raises(RunError, match=r"`b` is torch\.complex128, which") as caught:
        write(kept(odd), odd.__getitem__, tmp_path, Format())
    assert caught.value.code == "SH0609"
    with pytest.raises(RunError, match="another model's weights: `b`"):
        check_room(tmp_path, kept({"a": torch.ones(3), "b": torch.ones(7)}), Format())
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
