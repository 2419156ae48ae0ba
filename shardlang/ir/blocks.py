"""The blocks of a model: its repeated layers, found by the names and shapes of its parameters.

The parts of a module list are blocks where they are alike: `model.layers.0`, `model.layers.1`. Of
lists within lists the outermost counts. Parts that are single modules with a weight and a bias (the
linears of a `Sequential`) are no blocks: a list of them is as a rule one layer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

from shardlang.ir.leaf import Leaf

Content = tuple[str, tuple[int, ...]]
"""A parameter within a part of a list: its name there, and its shape."""


def blocks_of(leaves: Iterable[Leaf]) -> dict[str, str]:
    """Of every leaf that belongs to a block, the path of the block.

    >>> from shardlang.ir.layout import Layout
    >>> from shardlang.ir.leaf import Leaf, LeafKind
    >>> import torch
    >>> names = ["embed.weight", "layers.0.up.weight", "layers.1.up.weight"]
    >>> whole = Layout.whole((4, 4))
    >>> blocks_of(Leaf(n, LeafKind.PARAM, n, torch.float32, whole) for n in names)
    {'layers.0.up.weight': 'layers.0', 'layers.1.up.weight': 'layers.1'}
    """
    parts: dict[str, dict[str, set[Content]]] = {}
    names = []
    for leaf in leaves:
        names.append(leaf.name)
        for above, number, below in _cuts(leaf.name):
            parts.setdefault(above, {}).setdefault(number, set()).add((below, leaf.shape))
    lists = {above for above, numbered in parts.items() if _repeats(list(numbered.values()))}
    found = {name: _outermost(name, lists) for name in names}
    return {name: block for name, block in found.items() if block}


def _cuts(name: str) -> Iterator[tuple[str, str, str]]:
    """What stands above, at and below every number of a name, outermost first."""
    words = name.split(".")
    for i, word in enumerate(words[:-1]):
        if word.isdigit():
            yield ".".join(words[:i]), word, ".".join(words[i + 1 :])


def _repeats(parts: list[set[Content]]) -> bool:
    """Whether some part of a list is more than a weight and a bias, and mostly like others."""
    counts = Counter(content for part in parts for content in part)
    again = [[content for content in part if counts[content] > 1] for part in parts]
    return any(
        2 * len(alike) > len(part) and any(name not in ("weight", "bias") for name, _ in alike)
        for alike, part in zip(again, parts, strict=True)
    )


def _outermost(name: str, lists: set[str]) -> str:
    found = ((above, number) for above, number, _ in _cuts(name) if above in lists)
    return ".".join(filter(None, next(found, ())))
