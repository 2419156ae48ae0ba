"""The blocks of docs/your-own-loop.md, run on the sharded model and on the plain one."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

PAGE = Path(__file__).resolve().parents[2] / "docs" / "your-own-loop.md"
LIVE = ("batch", "batches", "folder", "__builtins__", "weights", "states")
"""What is no result; a plain state dict goes on changing with its model."""

REFUSED = re.compile(r"# refused: (SH\d{4})\n")


def blocks() -> list[str]:
    """Every block of Python, in order."""
    return re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.M | re.S)


def run(block: str, model: nn.Module, batches: list[Any], folder: Path) -> dict[str, Any]:
    """What a block leaves behind, with the model's weights, whole."""
    folder.mkdir(parents=True, exist_ok=True)
    space: dict[str, Any] = {
        "torch": torch, "model": copy.deepcopy(model), "batches": batches, "folder": folder,
    }  # fmt: skip
    torch.manual_seed(0)
    exec(compile(block, str(PAGE), "exec"), space)
    left = {name: space[name] for name in space if name not in LIVE}
    left["model"] = space["model"].state_dict()
    return dict(flat(left))


def flat(value: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """The numbers in nested results, by path."""
    if isinstance(value, (bool, int, float)):
        yield name, torch.tensor(value, dtype=torch.float64)
    elif isinstance(value, Tensor):
        full = value.full_tensor() if hasattr(value, "full_tensor") else value
        yield name, full.detach().double().clone()
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield from flat(part, f"{name}.{key}")
    elif isinstance(value, (list, tuple)):
        for key, part in enumerate(value):
            yield from flat(part, f"{name}.{key}")


def gap(mine: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    """The largest difference, infinite where the names differ."""
    if list(mine) != list(theirs):
        return float("inf")
    return max(
        float((mine[name] - theirs[name]).abs().max()) for name in mine if mine[name].numel()
    )
