"""Key-value caches of calls: cut with the other inputs, and filled as the model fills them.

A model of transformers appends to the very cache that it is given. A program gives a new one, whose
keys and values are then put into the layers of the given one, and of those that it was cut from.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch

from shardlang.capture.hf_types import Cache, CacheLayer
from shardlang.capture.nest import children, is_cache, refilled

_CUT_FROM = "_shardlang_cut_from"
_SPENT = "_shardlang_spent"


def caches_in(value: object) -> Iterator[Cache]:
    """The caches in a structure, depth first."""
    if isinstance(value, torch.Tensor):
        return
    if is_cache(value):
        yield value
        return
    for _, item in children(value) or []:
        yield from caches_in(item)


def cut_cache(whole: Cache, parts: object) -> Cache:
    """A cache with other keys and values, by layer, which a call fills together with `whole`."""
    assert isinstance(parts, list)
    made = refilled(whole, parts)
    for layer, source in zip(made.layers, whole.layers, strict=True):
        setattr(layer, _CUT_FROM, source)
    return made


def fill(given: object, made: object) -> None:
    """Let the caches of a call's arguments be those that it gave back.

    Where it gives none back, what the model would have put into them is not known: they are spent.
    """
    olds, news = list(caches_in(given)), list(caches_in(made))
    if len(olds) != len(news):
        for one in (source for old in olds for layer in old.layers for source in _sources(layer)):
            setattr(one, _SPENT, True)
        return
    for old, new in zip(olds, news, strict=True):
        new.layers = [_filled(a, b) for a, b in zip(old.layers, new.layers, strict=True)]


def _filled(layer: CacheLayer, by: CacheLayer) -> CacheLayer:
    """The layer that a given one was cut from in the end, filled like all on the way to it."""
    for one in (sources := _sources(layer)):
        one.keys, one.values = by.keys, by.values
        if hasattr(by, "cumulative_length"):
            one.cumulative_length = by.cumulative_length
    return sources[-1]


def _sources(layer: CacheLayer) -> list[CacheLayer]:
    """A layer, and those that it was cut from."""
    source: CacheLayer | None = vars(layer).get(_CUT_FROM)
    return [layer] if source is None else [layer, *_sources(source)]


def has_spent(given: object) -> bool:
    """Whether a cache among some arguments was passed to a call that gave none back."""
    return any(hasattr(layer, _SPENT) for cache in caches_in(given) for layer in cache.layers)


def with_caches(inputs: Mapping[str, object], named: Mapping[str, object]) -> dict[str, object]:
    """Inputs of a call by argument, those that were given as a cache as a cache again."""
    return {name: _like(named.get(name), value) for name, value in inputs.items()}


def _like(given: object, value: object) -> object:
    return cut_cache(given, value) if is_cache(given) else value
