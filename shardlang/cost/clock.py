"""How long a device takes for some nodes of a step, whose collectives run beside its computation.

A collective that is started is in flight until its wait; those of one stream follow one another,
and those of several streams run side by side. One that is not started is waited for at once.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable

from torch import fx

from shardlang.cost.ring import sent_bytes
from shardlang.cost.speeds import Speeds
from shardlang.ir.mesh import joined
from shardlang.ir.node import info
from shardlang.ir.step import (
    Stream,
    collectives_of,
    is_collective,
    is_start,
    is_wait,
    started_by,
    stream_of,
)

Seconds = Callable[[fx.Node], float]
"""How long a node takes: to compute it, or to send what it sends."""


def seconds_of_nodes(nodes: Iterable[fx.Node], computing_s: Seconds, sending_s: Seconds) -> float:
    """From the begin of the first node to the end of the last, in seconds."""
    now, free, done = 0.0, defaultdict[Stream, float](float), dict[fx.Node, float]()
    for node in nodes:
        if is_start(node):
            stream = stream_of(node)
            free[stream] = done[node] = max(now, free[stream]) + sending_s(node)
        elif is_wait(node):
            now = max(now, done[started_by(node)])
        elif is_collective(node):
            now += sending_s(node)
        else:
            now += computing_s(node)
    return now


def sending_s(speeds: Speeds, node: fx.Node) -> float:
    """Seconds of the call of a collective node, or of its start."""
    ways = [c for _, c in collectives_of(node) if c.sends]
    if not ways:
        return 0.0
    dtype = info(node).dtype
    assert dtype is not None, f"nothing is known of what {node} moves"
    axes = [axis.name for axis in joined(ways[0].axes)]
    return speeds.sending_s(axes, sum(sent_bytes(one, dtype.itemsize) for one in ways))
