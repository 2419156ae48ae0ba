"""What simulators share: values by device, faults by device, and when a value is done with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import fx

PerDevice = list[Any]
Watch = Callable[[fx.Node, PerDevice], None]


class DeviceFault(RuntimeError):
    """An op that fails on a simulated device, or a collective between them (`device` is None)."""

    def __init__(self, node: fx.Node, device: int | None, reason: str) -> None:
        where = "between the devices" if device is None else f"on device {device}"
        super().__init__(f"`{node.name}` fails {where}: {reason}")
        self.node, self.device, self.reason = node, device, reason


@contextmanager
def blaming(node: fx.Node, device: int | None = None) -> Iterator[None]:
    """Name the node in an error of torch."""
    try:
        yield
    except DeviceFault:
        raise
    except RuntimeError as error:
        raise DeviceFault(node, device, str(error).splitlines()[0]) from error


def last_uses(graph: fx.Graph) -> dict[fx.Node, list[fx.Node]]:
    """For every node, the values that nothing reads after it."""
    last: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        for source in node.all_input_nodes:
            last[source] = node
    gone: dict[fx.Node, list[fx.Node]] = {}
    for source, node in last.items():
        if node.op != "output":
            gone.setdefault(node, []).append(source)
    return gone
