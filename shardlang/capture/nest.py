"""Nested containers of tensors, taken apart into dotted names and put together again."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TypeAlias, TypeGuard

import torch

from shardlang.capture.errors import CaptureError
from shardlang.capture.hf_types import Cache, CacheLayer
from shardlang.ir.compat import FakeTensor


@dataclasses.dataclass(frozen=True, slots=True)
class Skeleton:
    """A structure with its tensors taken out: `rebuild` puts others in, in the same order."""

    names: tuple[str, ...]
    rebuild: Callable[[Sequence[object]], object]


_CONSTANTS = {"keys", "values", "_sliding_window_tensor"}
"""The tensors of a layer of a cache that are its keys and values, or the same in every call."""


def is_cache(value: object) -> TypeGuard[Cache]:
    """Whether `value` is a key-value cache with one layer of keys and values per block.

    A cache is none here whose layers keep further tensors from call to call.
    """
    layers = getattr(value, "layers", None)
    return isinstance(layers, list) and all(map(_is_layer, layers))


def _is_layer(layer: object) -> bool:
    if not hasattr(layer, "keys") or not hasattr(layer, "__dict__"):
        return False
    tensors = (name for name, held in vars(layer).items() if isinstance(held, torch.Tensor))
    return _CONSTANTS.issuperset(tensors)


def is_empty(cache: Cache) -> bool:
    """Whether no layer of a cache holds anything."""
    return not any(
        isinstance(layer.keys, torch.Tensor) and layer.keys.numel() for layer in cache.layers
    )


def children(value: object) -> list[tuple[str, object]] | None:
    """The named parts of a container, or None for anything else."""
    if isinstance(value, Mapping):
        return [(str(key), item) for key, item in value.items()]
    if isinstance(value, (tuple, list)):
        names = getattr(value, "_fields", None) or [str(i) for i in range(len(value))]
        return list(zip(names, value, strict=True))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [(f.name, getattr(value, f.name)) for f in dataclasses.fields(value)]
    return _cache_children(value)


def _cache_children(value: object) -> list[tuple[str, object]] | None:
    """The parts of a key-value cache, or None."""
    if hasattr(value, "self_attention_cache") and hasattr(value, "cross_attention_cache"):
        return [("self", value.self_attention_cache), ("cross", value.cross_attention_cache)]
    if not is_cache(value):
        return None
    return [(str(i), _layer_parts(layer)) for i, layer in enumerate(value.layers)]


def _layer_parts(layer: CacheLayer) -> dict[str, object]:
    """Keys and values; and, of a window that has left tokens behind, how many it has seen."""
    parts: dict[str, object] = {"key": layer.keys, "value": layer.values}
    seen = getattr(layer, "cumulative_length", None)
    if isinstance(layer.keys, torch.Tensor) and seen not in (None, layer.keys.shape[-2]):
        parts["length"] = seen
    return parts


def tensors(value: object, prefix: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor in a structure with its dotted name, depth first."""
    if isinstance(value, torch.Tensor):
        yield prefix, value
        return
    for name, item in children(value) or []:
        yield from tensors(item, f"{prefix}.{name}" if prefix else name)


def skeleton(value: object) -> Skeleton:
    """The structure of a model's output.

    A bare tensor is called `output`, the items of a sequence `output.0` and on; fields of a
    mapping or a dataclass keep their own names.
    """
    bare = isinstance(value, torch.Tensor)
    plain_sequence = isinstance(value, (tuple, list)) and not hasattr(value, "_fields")
    prefix = "output" if bare or plain_sequence else ""
    names = tuple(name for name, _ in tensors(value, prefix))
    build = _builder(value)
    return Skeleton(names, lambda flat: build(iter(flat)))


Builder: TypeAlias = "Callable[[Iterator[object]], object]"


def _builder(value: object) -> Builder:
    """A function that rebuilds `value` from an iterator over its tensors."""
    if isinstance(value, torch.Tensor):
        return next
    parts = children(value)
    if parts is None:
        return lambda _flat: value
    builders = [(name, _builder(item)) for name, item in parts]
    remake = _remaker(value)
    return lambda flat: remake({name: build(flat) for name, build in builders})


def _remaker(value: object) -> Callable[[Mapping[str, object]], object]:
    """A function from named parts to a container like `value`."""
    kind: Callable[..., object] = type(value)
    if dataclasses.is_dataclass(value):
        return lambda parts: kind(**parts)
    if isinstance(value, Mapping):
        keys = list(value)
        return lambda parts: kind(zip(keys, parts.values(), strict=True))
    if hasattr(value, "_fields"):
        return lambda parts: kind(**parts)
    if isinstance(value, (tuple, list)):
        return lambda parts: kind(parts.values())
    if hasattr(value, "self_attention_cache"):
        return lambda parts: kind(parts["self"], parts["cross"])
    assert is_cache(value)
    return lambda layers: refilled(value, layers.values())


def refilled(cache: Cache, layers: Iterable[object]) -> Cache:
    """A key-value cache like `cache` with other keys and values, layer by layer."""
    new = copy.copy(cache)
    new.layers = [copy.copy(layer) for layer in cache.layers]
    for layer, parts in zip(new.layers, layers, strict=True):
        assert isinstance(parts, Mapping)
        hold(layer, parts["key"], parts["value"])
    return new


def hold(layer: CacheLayer, keys: object, values: object) -> None:
    """Let a layer of a cache hold keys and values, and say of itself what they are."""
    layer.keys, layer.values = keys, values
    if not isinstance(keys, torch.Tensor):
        return
    layer.is_initialized = True
    layer.dtype, layer.device = keys.dtype, keys.device
    window = vars(layer).get("_sliding_window_tensor")
    if window is not None and (isinstance(window, FakeTensor) or window.device != keys.device):
        layer._sliding_window_tensor = torch.tensor(layer.sliding_window, device=keys.device)


def nest(flat: Mapping[str, object]) -> dict[str, object]:
    """Dotted names to nested dicts; a level whose names are 0, 1, … becomes a list."""
    tree: dict[str, object] = {}
    for name, value in flat.items():
        *path, last = name.split(".")
        level = tree
        for part in path:
            below = level.setdefault(part, {})
            if not isinstance(below, dict):
                inside = f"input `{name}` lies inside another input"
                raise CaptureError(
                    "SH0353", inside, help="declare the whole or its parts, not both", input=name
                )
            level = below
        if last in level:
            raise CaptureError(
                "SH0353", f"input `{name}` is declared twice", help="drop one", input=name
            )
        level[last] = value
    return {name: _listed(value) for name, value in tree.items()}


def _listed(value: object) -> object:
    """`value` with dicts keyed 0, 1, … turned into lists."""
    if not isinstance(value, dict):
        return value
    items = {name: _listed(item) for name, item in value.items()}
    numbers = [str(i) for i in range(len(items))]
    return [items[i] for i in numbers] if items.keys() == set(numbers) else items


def named_call(
    forward_names: Sequence[str], args: Sequence[object], kwargs: Mapping[str, object]
) -> dict[str, object]:
    """The arguments of a call `model(*args, **kwargs)` by name.

    Raises `CaptureError` SH0353 for more arguments than the forward takes, or one given twice.
    """
    if len(args) > len(forward_names):
        raise CaptureError(
            "SH0353",
            f"the call passes {len(args)} arguments, the forward takes {len(forward_names)}",
            help="call it as the plain model is called",
        )
    named = dict(zip(forward_names, args, strict=False))
    twice = sorted(named.keys() & kwargs.keys())
    if twice:
        raise CaptureError(
            "SH0353",
            f"the call passes `{twice[0]}` by position and by name",
            help="pass it once",
        )
    return {**named, **kwargs}


def leaves(value: object, prefix: str = "") -> Iterator[tuple[str, object]]:
    """Every tensor, everything that is not a container, and every empty one, by dotted name."""
    parts = None if isinstance(value, torch.Tensor) else children(value)
    if not parts:
        if prefix:
            yield prefix, value
        return
    for name, item in parts:
        yield from leaves(item, f"{prefix}.{name}" if prefix else name)
