"""A process group for every stream of a step program, so that none waits for what another sends.

Calls of one process group are made one after the other. Streams that share a group of devices
therefore get process groups of their own; a stream that is alone there takes the one that is there.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import fx

from shardlang.ir.mesh import Axis
from shardlang.ir.step import Stream, collectives_of, is_collective, stream_of
from shardlang.runtime.groups import Group, Groups, between


@dataclass(frozen=True, slots=True)
class Lane:
    """This device, as collectives of one stream see it.

    Attributes:
        shared: the groups, by their axes, over which other streams send too.
    """

    groups: Groups
    stream: Stream
    shared: frozenset[tuple[Axis, ...]]

    @property
    def coord(self) -> dict[str, int]:
        """The device's coordinate."""
        return self.groups.coord

    @property
    def device(self) -> torch.device:
        """The torch device of its tensors."""
        return self.groups.device

    def of(self, axes: Iterable[Axis]) -> Group:
        """The devices that it talks to along some axes; made if need be, on every rank together."""
        key = between(self.groups.mesh, axes)
        apart = self.stream is not Stream.ACTIVATIONS and key in self.shared
        return self.groups.of(key, self.stream if apart else "")


def connect(graph: fx.Graph, groups: Groups) -> None:
    """Make the groups of a graph that not every rank runs. Collective for all ranks."""
    made = lanes(graph, groups)
    for node in filter(is_collective, graph.nodes):
        for _, collective in collectives_of(node):
            made[stream_of(node)].of(collective.axes)


def lanes(graph: fx.Graph, groups: Groups) -> dict[Stream, Lane]:
    """The lane of every stream of a graph; the same on every rank."""
    streams: dict[tuple[Axis, ...], set[Stream]] = {}
    for node in filter(is_collective, graph.nodes):
        for _, collective in collectives_of(node):
            if collective.sends:
                key = between(groups.mesh, collective.axes)
                streams.setdefault(key, set()).add(stream_of(node))
    shared = frozenset(key for key, found in streams.items() if len(found) > 1)
    return {stream: Lane(groups, stream, shared) for stream in Stream}
