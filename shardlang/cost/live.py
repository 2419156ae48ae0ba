"""Live bytes over a step: how many, when, and of what, as the eager executor allocates and frees.

Everything is counted that comes out of an op as a tensor of its own memory, on the CPU and over
gloo. Kernels may need more for themselves, and allocators round.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor

from torch import fx

from shardlang.cost.devices import unlike_devices
from shardlang.cost.effects import Held, TensorType
from shardlang.cost.replay import Replay
from shardlang.ir.mesh import Coord
from shardlang.ir.step import StepProgram


def peak_bytes(program: StepProgram, also_saved: Collection[str] = ()) -> int:
    """The most bytes that are alive at once in forward and backward, on the fullest device.

    Parameters, buffers, inputs, results and gradients count; the state of an optimizer does not.
    It costs about 25 microseconds for each node and each kind of device (`unlike_devices`; one
    where all shards are even), and a millisecond for each call that no program made before: a
    change of a program costs what is new in it.

    Args:
        also_saved: what the forward hands over beside what the backward reads, by name.
    """
    return fullest(program, also_saved).peak


def fullest(
    program: StepProgram,
    also_saved: Collection[str] = (),
    beside: Callable[[Coord], int] = lambda coord: 0,
) -> Replay:
    """A step on the device that needs the most bytes; on the first of several such.

    Args:
        beside: bytes that a device holds all the time beside those of the step.
    """
    with ThreadPoolExecutor(1) as thread:
        made = thread.submit(_on_unlike_devices, program, also_saved).result()
    return max(made, key=lambda one: one.peak + beside(one.coord))


def _on_unlike_devices(program: StepProgram, also_saved: Collection[str]) -> list[Replay]:
    """In a thread of its own, away from the caller's modes of torch."""
    made = [Replay(program, coord, "gloo") for coord in unlike_devices(program)]
    for one in made:
        one.run(also_saved)
    return made


def local_types(program: StepProgram) -> dict[fx.Node, TensorType]:
    """What every node that gives one tensor gives on the first device."""
    first = next(iter(program.mesh.coords()))

    def replayed() -> Replay:
        made = Replay(program, first, "gloo")
        made.run()
        return made

    with ThreadPoolExecutor(1) as thread:
        found = thread.submit(replayed).result().made
    return {
        node: value.type
        for node, value in found.items()
        if isinstance(value, Held) and isinstance(value.type, TensorType)
    }
