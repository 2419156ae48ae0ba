"""Key-value caches of calls: cut with the other inputs, and filled as the model fills them.

A model of transformers appends to the very cache that it is given. A program gives a new one, whose
keys and values are then put into the layers of the given one, and of those that it was cut from.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch

from shardlang.capture.errors import CaptureError
from shardlang.capture.hf_types import Cache, CacheLayer
from shardlang.capture.nest import children, hold, is_cache, is_empty, refilled

_CUT_FROM = "_shardlang_cut_from"
_SPENT = "_shardlang_spent"


@dataclass(frozen=True, slots=True)
class _Cut:
    """The layer that another was cut from, and its keys when both were last the same."""

    source: CacheLayer
    keys: object


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
        setattr(layer, _CUT_FROM, _Cut(source, source.keys))
    return made


def fill(given: object, made: object) -> None:
    """Let the caches of a call's arguments be those that it gave back.

    Where it gives none back, what the model would have put into them is not known: they are spent.
    """
    olds, news = list(caches_in(given)), list(caches_in(made))
    if len(olds) != len(news):
        for one in (x for old in olds for x in _with_layers(old)):
            setattr(one, _SPENT, True)
        return
    for old, new in zip(olds, news, strict=True):
        old.layers = old.layers or list(new.layers)
        new.layers = [_filled(a, b) for a, b in zip(old.layers, new.layers, strict=True)]


def _with_layers(cache: Cache) -> list[object]:
    """A cache, its layers, and those that they were cut from."""
    return [cache, *(source for layer in cache.layers for source in _sources(layer))]


def _filled(layer: CacheLayer, by: CacheLayer) -> CacheLayer:
    """The layer that a given one was cut from in the end, filled like all on the way to it."""
    for one in (sources := _sources(layer)):
        hold(one, by.keys, by.values)
        if hasattr(by, "cumulative_length"):
            one.cumulative_length = by.cumulative_length
        if _CUT_FROM in vars(one):
            setattr(one, _CUT_FROM, replace(vars(one)[_CUT_FROM], keys=by.keys))
    return sources[-1]


def _sources(layer: CacheLayer) -> list[CacheLayer]:
    """A layer, and those that it was cut from."""
    cut: _Cut | None = vars(layer).get(_CUT_FROM)
    return [layer] if cut is None else [layer, *_sources(cut.source)]


def check_caches(given: object) -> None:
    """Look among the arguments of a call for caches that are not what they were given as.

    Raises:
        CaptureError: SH0353, one was passed before to a call that gave none back, or was filled or
            changed since this one was cut from it.
    """
    parts = [one for cache in caches_in(given) for one in _with_layers(cache)]
    if any(hasattr(one, _SPENT) for one in parts):
        raise CaptureError(
            "SH0353",
            "the cache was passed to a call before that gave none back, so what the model would"
            " have put into it is not known",
            help="let the model return the cache that it is given, or pass that call a"
            " `copy.deepcopy` of it",
        )
    if any(map(_is_stale, parts)):
        raise CaptureError(
            "SH0353",
            "the cache has been filled or changed since these inputs were cut, which hold what was"
            " in it before",
            help="cut them again, with `shard_inputs` and the cache as it is now",
        )


def _is_stale(one: object) -> bool:
    """Whether this is a layer, and the one that it was cut from holds other keys by now."""
    cut: _Cut | None = getattr(one, _CUT_FROM, None)
    return cut is not None and cut.source.keys is not cut.keys


def with_caches(inputs: Mapping[str, object], named: Mapping[str, object]) -> dict[str, object]:
    """Inputs of a call by argument, those that were given as a cache as a cache again."""
    return {name: _like(named.get(name), value) for name, value in inputs.items()}


def _like(given: object, value: object) -> object:
    if not is_cache(given):
        return value
    return given if is_empty(given) else cut_cache(given, value)
