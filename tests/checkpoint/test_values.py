"""Plain values come back from JSON as they were, to the bit."""

from __future__ import annotations

import json
import math
from collections import Counter

import numpy as np
import pytest
import torch

from shardlang.runtime.checkpoint.values import decode, encode
from tests.checkpoint.same import same

VALUES = [
    None, True, 3, -1.5, 0.1, 1e-320, math.inf, -math.inf, "text", [1, (2, [3.0])], b"\x00\xff",
    {"a": {"b": (0.9, 0.95)}}, {1: 2, (3, 4): None}, {"$": "not a kind", "of": 1}, Counter({2: 1}),
    np.float32(0.1), np.arange(6, dtype=np.uint32).reshape(2, 3), torch.tensor(3.0),
    torch.tensor(0.1, dtype=torch.bfloat16), torch.tensor([1, 2], dtype=torch.uint8),
    torch.zeros(0, dtype=torch.uint8), torch.tensor(7),
]  # fmt: skip


@pytest.mark.parametrize("value", VALUES, ids=str)
def test_a_value_comes_back(value: object) -> None:
    text = json.dumps(encode({"it": value}, "", lambda path, tensor: None), allow_nan=False)
    found = decode(json.loads(text), "", lambda path, name: torch.empty(0))
    assert isinstance(found, dict) and same(found["it"], value)


def test_a_tensor_is_named_by_its_path() -> None:
    kept: dict[str, torch.Tensor] = {}

    def keep(path: str, tensor: torch.Tensor) -> str:
        kept[path] = tensor
        return path

    tree = {"state": [{"x": torch.ones(2)}, {3: (torch.zeros(1),)}]}
    node = json.loads(json.dumps(encode(tree, "opt", keep)))
    assert list(kept) == ["opt.state.0.x", "opt.state.1.3.0"]
    found = decode(node, "opt", lambda path, name: kept[name] if path == name else torch.empty(0))
    assert same(found, tree)
