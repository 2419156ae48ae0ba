"""Live bytes over a step: how many, when, and of what, as the eager executor allocates and frees.

Everything is counted that comes out of an op as a tensor of its own memory, on the CPU and over
gloo. Kernels may need more for themselves, and allocators round.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import torch
from torch import fx

from shardlang.cost.devices import unlike_devices
from shardlang.cost.effects import Held, TensorType
from shardlang.cost.replay import Replay
from shardlang.cost.update import UpdateCost
from shardlang.ir.mesh import Coord
from shardlang.ir.step import StepProgram
from shardlang.runtime.step_executor import saved_by
from shardlang.vjp.at_device import written_for

_CPU = torch.device("cpu")


def peak_bytes(program: StepProgram) -> int:
    """The most bytes that are alive at once in forward and backward, on the fullest device.

    Parameters, buffers, inputs, results and gradients count; the state of an optimizer does not.
    It costs about 25 microseconds for each node and each kind of device (`unlike_devices`; one
    where all shards are even), and a millisecond for each call that no program made before: a
    change of a program costs what is new in it.
    """
    return fullest(program).peak


def fullest(
    program: StepProgram,
    whole: StepProgram | None = None,
    update: UpdateCost | None = None,
) -> Replay:
    """A step on the device that needs the most bytes; on the first of several such.

    Args:
        whole: the step whose forward is run, if its backward reads more than this one's.
        update: what follows; None if nothing does.
    """
    with ThreadPoolExecutor(1) as thread:
        made = thread.submit(_on_unlike_devices, program, whole).result()
    return max(made, key=lambda one: one.peak if update is None else update.peak(one, one.coord))


def _on_unlike_devices(program: StepProgram, whole: StepProgram | None) -> list[Replay]:
    """In a thread of its own, away from the caller's modes of torch."""
    return [replayed(program, coord, whole) for coord in unlike_devices(program)]


def replayed(program: StepProgram, coord: Coord, whole: StepProgram | None = None) -> Replay:
    """What a step does to the memory of one device; `whole` as for the fullest."""
    made = Replay(written_for(program, coord, _CPU), coord, "gloo")
    made.run(() if whole is None else saved_by(written_for(whole, coord, _CPU)))
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
