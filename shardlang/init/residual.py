"""The residual stream, split along the sequence or along its hidden dim.

The stream runs from the token embedding through every layer. Split along the sequence, as in
Megatron's sequence parallelism (Korthikanti et al., 2022, section 4.2.2), or along the hidden dim,
as in GSPMD's two-dimensional layout (Xu et al., 2021), what lies between the matrices is computed
in parts, and each all-reduce becomes a reduce-scatter and an all-gather.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

from torch import fx, nn

from shardlang.capture import Captured
from shardlang.init.chains import Chain, Dims
from shardlang.init.choose import Site, sites_of
from shardlang.init.layouts import Entry, Layouts
from shardlang.ir.dim_layout import DimLayout
from shardlang.ir.dims import Dim
from shardlang.ir.graph import producer
from shardlang.ir.mesh import Axis
from shardlang.ir.node import info, tensor_of

Residual = Literal["whole", "sequence", "hidden"]
DIMS: dict[Residual, int] = {"sequence": 1, "hidden": 2}
"""Which dim of `b s h` is split."""


class StreamError(ValueError):
    """A model in which no residual stream is found."""


@dataclass(frozen=True, slots=True)
class SplitValue:
    """A module's result that is split over the model axis along one dim of `b s h`."""

    module: str
    path: tuple[str, ...]
    dim: int


def on_the_stream(model: nn.Module) -> Callable[[str], bool]:
    """Whether a module may return the residual stream: a layer of a stack, or an embedding."""
    embeddings = {name for name, part in model.named_modules() if isinstance(part, nn.Embedding)}
    return lambda name: name in embeddings or _is_layer(name)


def split_stream(
    captured: Captured, dims: Dims, axis: Axis, residual: Residual
) -> list[SplitValue]:
    """The results of the token embedding and of each layer.

    Raises:
        StreamError: no stack of layers is seen to pass the stream on.
    """
    lookups = [site for site in sites_of(dims) if site.lookup]
    tables = {info(site.node).module for site in lookups}
    places = {place for chain in _streams(dims, lookups, axis) for place in chain.places}
    named = {node.name: node for node in dims.nodes}
    found: dict[str, tuple[str, ...]] = {}
    for (module, side, selector), value in captured.values.items():
        node = named.get(value.name)
        asked = side == "out" and (_is_layer(module) or module in tables)
        if asked and node is not None and _is_stream(node, places):
            found.setdefault(module, tuple(selector.split(".")) if selector else ())
    found = {name: path for name, path in found.items() if not _is_inside(name, found)}
    if not any(_is_layer(module) for module in found):
        raise StreamError("no stack of layers is seen to pass on what a token embedding begins")
    return [SplitValue(name, path, DIMS[residual]) for name, path in found.items()]


def with_tables_by_columns(dims: Dims, axis: Axis, layouts: Layouts) -> Layouts:
    """The layouts with each token table, unless a product reads it too, split as the stream is."""
    sites = sites_of(dims)
    products = {name for site in sites if not site.lookup for name in _tables(dims, site)}
    tables = {name for site in sites if site.lookup for name in _tables(dims, site)} - products
    columns = {name: {1: Entry((axis.name,))} for name in tables}
    return replace(layouts, entries={**layouts.entries, **columns})


def _tables(dims: Dims, site: Site) -> Iterator[str]:
    return (dims.params[source].name for source in dims.sources(site.place[0]))


def _streams(dims: Dims, lookups: Iterable[Site], axis: Axis) -> Iterator[Chain]:
    """What is split with the columns of each token table."""
    for site in lookups:
        width = tensor_of(site.place[0]).shape[-1]
        if width >= axis.size:
            yield dims.chain(Dim(*site.place, 1), DimLayout.shard(width, (axis,)))


def _is_layer(module: str) -> bool:
    return module.rpartition(".")[2].isdigit()


def _is_stream(node: fx.Node, places: set[Dim]) -> bool:
    source, index = producer(node)
    return tensor_of(node).dim() == 3 and Dim(source, index, 2) in places


def _is_inside(module: str, others: Iterable[str]) -> bool:
    """Whether a module is a part of another one, which says enough."""
    return any(module.startswith(f"{other}.") for other in others)
