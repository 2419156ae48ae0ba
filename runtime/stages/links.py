"""The links of one device to those that compute other stages of the same microbatches."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from shardlang.ir.mesh import Axis
from shardlang.ir.pipeline.action import Action
from shardlang.runtime.groups import Groups
from shardlang.runtime.stages.routes import Message, Routes, Way
from shardlang.runtime.transport import Arriving, Link
from shardlang.runtime.watch import named

Shapes = Mapping[str, tuple[tuple[int, ...], torch.dtype]]
"""Local shapes and types of values, by name."""


class Sends(Protocol):
    """What sends to other stages, and receives from them."""

    def send(self, way: Way, x: Tensor) -> Arriving:
        """Begin to send a value."""
        ...

    def receive(self, way: Way, like: Tensor) -> Arriving:
        """Begin to receive a value of a shape and type."""
        ...


class Links:
    """What this device sends to other stages and receives from them, in one step.

    A receive is posted one action ahead. A send is waited for when, in the order of the schedule,
    its value has been read: that never holds up what the reader waits for.
    """

    def __init__(self, axis: Axis, groups: Groups, ways: Iterable[Way]) -> None:
        """Connect. Collective for all devices of the mesh.

        Args:
            ways: all over which anything is sent along the axis, the same on every device.
        """
        self._links: dict[Way, Link] = {}
        self._device = groups.device
        for way in ways:
            group = groups.pair(axis, *way, f"from {way[0]}")
            if group is not None and groups.coord[axis.name] in way:
                self._links[way] = Link(group)

    def send(self, way: Way, x: Tensor) -> Arriving:
        """Begin to send a value."""
        return self._links[way].send(x)

    def receive(self, way: Way, like: Tensor) -> Arriving:
        """Begin to receive a value of a shape and type."""
        return self._links[way].receive(like.shape, like.dtype, self._device)


def told(routes: Routes, shapes: Sequence[Shapes]) -> dict[Way, list[str]]:
    """What goes from and to a rank over each way, in order and in words.

    Args:
        shapes: of each microbatch, local shapes and types by name.
    """
    found = {way: list(row) for way, row in routes.arriving.items()}
    for row in routes.sent.values():
        for way, message in row:
            found.setdefault(way, []).append(message)
    return {way: [_line(one, shapes) for one in row] for way, row in found.items()}


def _line(message: Message, shapes: Sequence[Shapes]) -> str:
    shape, dtype = shapes[message.microbatch][message.value]
    return f"{_route(message)}: {dtype}{list(shape)}"


class Traffic:
    """The messages of one step of this device."""

    def __init__(self, links: Links, routes: Routes, shapes: Sequence[Shapes]) -> None:
        self._links, self._routes = links, routes
        self._shapes = shapes
        self._due = {way: deque(row) for way, row in routes.arriving.items()}
        self._posted: dict[Message, Arriving] = {}
        self._sending: dict[Message, Arriving] = {}

    def post(self, action: Action | None) -> None:
        """Post what must have arrived before an action, and what comes before it."""
        for way, message in self._routes.needed.get(action, ()) if action is not None else ():
            while message not in self._posted and message in self._due[way]:
                first = self._due[way].popleft()
                self._posted[first] = self._receive(way, first)

    def _receive(self, way: Way, message: Message) -> Arriving:
        shape, dtype = self._shapes[message.microbatch][message.value]
        like = torch.empty(shape, dtype=dtype, device="meta")
        return self._links.receive(way, like)

    def arrived(self, action: Action) -> Iterable[tuple[Message, Tensor]]:
        """What an action needs of other ranks, once it is there."""
        for _, message in self._routes.needed.get(action, ()):
            label = _label("receive", message)
            yield message, named(label, self._posted.pop(message).wait)

    def send(self, action: Action, values: Mapping[str, object]) -> None:
        """Begin to send what an action has made for other ranks."""
        for way, message in self._routes.sent.get(action, ()):
            x = values[message.value]
            assert isinstance(x, Tensor), f"{message.value} is no tensor"
            label = _label("send", message)
            self._sending[message] = named(label, self._links.send, way, x)

    def settle(self, action: Action) -> None:
        """Wait for the sends that are done before an action, and let go of their values."""
        for message in self._routes.done.get(action, ()):
            self._wait(message)

    def finish(self) -> None:
        """Wait for all sends that are left."""
        for message in list(self._sending):
            self._wait(message)

    def _wait(self, message: Message) -> None:
        sending = self._sending.pop(message, None)
        if sending is not None:
            named(_label("send", message), sending.wait)


def _label(what: str, message: Message) -> str:
    """A transfer in words: `send of x from stage 0 to stage 1, microbatch 2`."""
    return f"{what} of {_route(message)}"


def _route(message: Message) -> str:
    stages = f"from stage {message.source} to stage {message.target}"
    return f"{message.value} {stages}, microbatch {message.microbatch}"
