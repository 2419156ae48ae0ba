"""The op in whose box a parameter is drawn: the one that alone reads it, gathered or not."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from torch import fx

from shardlang.ir.node import info
from shardlang.ir.step import collectives_of, is_bucket, is_collective, is_wait
from shardlang.ir.views import gives_view


def homes_of(params: Iterable[fx.Node]) -> dict[fx.Node, fx.Node]:
    """For every parameter that one op of its own module and half alone reads, that op."""
    found: dict[fx.Node, fx.Node] = {}
    for param in params:
        readers = set(_readers(param))
        if len(readers) == 1 and info(home := readers.pop()).module == info(param).module:
            found[param] = home
    return found


def _readers(node: fx.Node) -> Iterator[fx.Node]:
    """The ops of the same half that read a value, in whatever layout."""
    for user in node.users:
        if user.op == "output" or info(user).backward != info(node).backward:
            continue
        if is_collective(user) and is_bucket(user):
            yield from _readers_of_item(user, node)
        elif is_collective(user) or is_wait(user) or gives_view(user.target):
            yield from _readers(user)
        else:
            yield user


def _readers_of_item(bucket: fx.Node, node: fx.Node) -> Iterator[fx.Node]:
    """The ops that read what a bucket makes of a value."""
    items = next((x for x in bucket.users if is_wait(x)), bucket).users
    sources = [x for x, _ in collectives_of(bucket)]
    for item in items:
        place = item.args[1]
        if isinstance(place, int) and sources[place] is node:
            yield from _readers(item)
