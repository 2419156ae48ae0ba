"""Key-value caches as the models of transformers make them, and what a call may pass as one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import zip_longest
from typing import NotRequired, TypedDict

from torch import Tensor

from shardlang.capture.errors import CaptureError
from shardlang.capture.hf_types import Cache, CacheLayer


class Past(TypedDict):
    """What a layer holds: keys and values of shape `b h s d`, and how many tokens it has seen."""

    key: Tensor
    value: Tensor
    length: NotRequired[int]


_STATE = {"keys", "values", "is_initialized", "dtype", "device", "cumulative_length"}
"""What a layer of a cache says of the tokens that it has seen."""


def filled(cache: Cache, layers: Sequence[Past]) -> Cache:
    """An empty key-value cache with the past in each layer's `key` and `value`, if there is one.

    A layer has seen as many tokens as it holds, if no `length` says that they were more.
    """
    for layer, past in zip(cache.layers, layers, strict=True) if layers else ():
        layer.lazy_initialization(past["key"], past["value"])
        layer.keys, layer.values = past["key"], past["value"]
        if hasattr(layer, "cumulative_length"):
            layer.cumulative_length = past.get("length", past["key"].shape[-2])
    return cache


def kinds_of(layers: Iterable[CacheLayer]) -> list[str]:
    """What each layer of a cache is, whatever it holds: `Kind(setting=value)`."""
    return [f"{type(layer).__name__}({_settings(layer)})" for layer in layers]


def _settings(layer: CacheLayer) -> str:
    held = ((n, x) for n, x in vars(layer).items() if n not in _STATE and not n.startswith("_"))
    return ", ".join(f"{name}={value!r}" for name, value in held)


def check_kinds(given: Cache, own: Sequence[str]) -> None:
    """Raise SH0353 for a cache whose layers are not such as the model's own cache has.

    One without layers makes them when they are first filled.
    """
    make = getattr(given, "layer_class_to_replicate", None)
    layers = given.layers or [make() for _ in own if make]
    for at, (found, wanted) in enumerate(zip_longest(kinds_of(layers), own)):
        if found != wanted:
            mine, models = (f"`{kind}`" if kind else "missing" for kind in (found, wanted))
            raise CaptureError(
                "SH0353",
                f"layer {at} of the cache is {mine}, and of the model's own cache {models}",
                help="make it with `DynamicCache(config=model.config)`, or pass the cache that a"
                " call gave",
            )


def check_no_past(given: Mapping[str, object]) -> None:
    """Raise SH0353 for a call that says that it has no past, and not whether it keeps a cache.

    The plain model keeps one then, as its configuration says; a program does not.
    """
    if given.get("past_key_values", "") is None and given.get("use_cache") is None:
        raise CaptureError(
            "SH0353",
            "the call passes `past_key_values=None` without `use_cache`, and a call that is given"
            " no cache keeps none: the past would be forgotten",
            help="pass `use_cache=True` in every call whose cache is wanted; where none is, pass"
            " `use_cache=False` or leave `past_key_values` out",
        )
