"""Plain values of a checkpoint as JSON, from which they come back bit by bit.

Numbers, strings, lists and dicts stand as they are. What JSON does not have is a dict with the key
`$`: tuples, bytes, arrays, small tensors, and the names of tensors that lie in files of their own.
"""

from __future__ import annotations

import base64
import math
from collections import Counter
from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

from shardlang.runtime.errors import RunError
from shardlang.runtime.whole import held_shard

Keep = Callable[[str, Tensor], str | None]
"""Takes a tensor into a file, by its path in the tree, and gives its name; None for a value."""

Find = Callable[[str, str], Tensor]
"""The tensor that stands at a path of the tree, by the name of what was kept."""

_KIND = "$"


def encode(value: object, path: str, keep: Keep) -> object:
    """A tree of values as JSON.

    Args:
        path: where it stands, for messages and names.

    Raises:
        RunError: SH0663, a value is of a kind that cannot be kept.
    """
    if value is None or (isinstance(value, bool | int | str) and type(value) in _PLAIN):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {_KIND: "float", "of": str(float(value))}
    if isinstance(value, Tensor):
        name = keep(path, value)
        return _value_of(value) if name is None else {_KIND: "tensor", "of": name}
    return _collection(value, path, keep)


_PLAIN = (bool, int, str)


def _collection(value: object, path: str, keep: Keep) -> object:
    if isinstance(value, Mapping):
        return _mapping(value, path, keep)
    if isinstance(value, list | tuple):
        found = [encode(part, f"{path}.{i}", keep) for i, part in enumerate(value)]
        return found if isinstance(value, list) else {_KIND: "tuple", "of": found}
    if isinstance(value, bytes | bytearray):
        return {_KIND: "bytes", "of": base64.b64encode(value).decode()}
    if isinstance(value, np.generic | np.ndarray):
        text = base64.b64encode(np.ascontiguousarray(value).tobytes()).decode()
        kind = "array" if isinstance(value, np.ndarray) else "number"
        return {_KIND: kind, "dtype": str(value.dtype), "shape": list(value.shape), "of": text}
    raise RunError(
        "SH0663",
        f"`{path}` is a `{type(value).__name__}`, which a checkpoint cannot hold",
        help="let `state_dict()` give numbers, strings, tensors, arrays, and lists and dicts of"
        " these",
    )


def _mapping(value: Mapping[object, object], path: str, keep: Keep) -> object:
    pairs = [(key, encode(part, f"{path}.{key}", keep)) for key, part in value.items()]
    if isinstance(value, Counter):
        return {_KIND: "counter", "of": [[encode(key, path, keep), n] for key, n in pairs]}
    if all(isinstance(key, str) for key, _ in pairs) and _KIND not in value:
        return {str(key): part for key, part in pairs}
    return {_KIND: "dict", "of": [[encode(key, path, keep), part] for key, part in pairs]}


def _value_of(value: Tensor) -> dict[str, object]:
    """A small tensor."""
    plain = held_shard(value).detach().cpu().contiguous()
    text = base64.b64encode(plain.reshape(-1).view(torch.uint8).numpy().tobytes()).decode()
    dtype = str(plain.dtype).removeprefix("torch.")
    return {_KIND: "value", "dtype": dtype, "shape": list(plain.shape), "of": text}


def decode(node: object, path: str, find: Find) -> object:
    """The tree of values that JSON stands for.

    Args:
        path: where it stands; empty for the whole tree.
    """
    if isinstance(node, list):
        return [decode(part, _below(path, i), find) for i, part in enumerate(node)]
    if not isinstance(node, dict):
        return node
    kind, of = node.get(_KIND), node.get("of")
    if kind is None:
        return {key: decode(part, _below(path, key), find) for key, part in node.items()}
    if kind == "tensor":
        return find(path, str(of))
    if isinstance(of, str):
        return _from_text(str(kind), node, of)
    assert isinstance(of, list)
    if kind == "tuple":
        return tuple(decode(part, _below(path, i), find) for i, part in enumerate(of))
    pairs = [(decode(key, path, find), value) for key, value in of]
    if kind == "counter":
        return Counter(dict(pairs))
    return {key: decode(value, _below(path, key), find) for key, value in pairs}


def _below(path: str, key: object) -> str:
    return f"{path}.{key}" if path else str(key)


def _from_text(kind: str, node: Mapping[str, object], of: str) -> object:
    if kind == "float":
        return float(of)
    raw = bytearray(base64.b64decode(of))
    if kind == "bytes":
        return bytes(raw)
    shape, dtype = node["shape"], str(node["dtype"])
    assert isinstance(shape, list)
    if kind == "value":
        flat = torch.frombuffer(raw, dtype=torch.uint8) if raw else torch.empty(0).byte()
        return flat.view(getattr(torch, dtype)).reshape(shape).clone()
    found = np.frombuffer(bytes(raw), dtype=dtype).reshape(shape)
    return found[()] if kind == "number" else found.copy()
