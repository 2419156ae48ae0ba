"""Process groups of a mesh: one per set of axes that the program communicates over, and stream.

Groups are made when first asked for. Making one is itself collective, so all ranks must ask in the
same order; loading one program on every rank does so. Members stand in the order of their ranks,
whatever the order of the axes: where a member's shard goes follows from its coordinate alone.
"""

from __future__ import annotations

import atexit
import datetime
import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from shardlang.ir.compat import default_store, forget_process_groups, timeout_of
from shardlang.ir.mesh import Axis, Mesh, product
from shardlang.runtime.errors import RunError
from shardlang.runtime.peers import listen
from shardlang.runtime.reports import supervised
from shardlang.runtime.watch import WATCH

TIMEOUT_S = 600.0
"""How long a rank waits in one collective before the run ends."""


_MESHES: list[DeviceMesh] = []
"""The device meshes over our process groups."""


class Connection:
    """A process group, until this process leaves it.

    All of ours are held here, and by the device meshes of torch. A thread of gloo may hold the last
    reference to a tensor for a moment after its call is done, and an interpreter that ends
    meanwhile aborts; only the end of the process group itself waits for its threads.
    """

    __slots__ = ("name", "process_group")
    _open: ClassVar[list[Connection]] = []

    def __init__(self, process_group: Any) -> None:
        self.process_group = process_group
        self.name: str = process_group.group_name
        Connection._open.append(self)

    @staticmethod
    def close_all() -> None:
        """Let go of every process group; no call is possible afterwards."""
        for one in Connection._open:
            one.process_group = None
        Connection._open.clear()
        for mesh in _MESHES:
            forget_process_groups(mesh)
        _MESHES.clear()


@dataclass(frozen=True, slots=True)
class Group:
    """The devices that this one talks to along some axes.

    Attributes:
        axes: the axes, in mesh order, without those of size 1.
        coords: the members' coordinates, in the order of their ranks.
        index: this device's place among the members.
        ranks: the members' numbers, in ascending order.
        backend: `gloo` or `nccl`; empty for a group of one.
        connection: None for a group of one.
    """

    axes: tuple[Axis, ...]
    coords: tuple[dict[str, int], ...]
    index: int
    ranks: tuple[int, ...] = (0,)
    backend: str = ""
    connection: Connection | None = None

    @property
    def process_group(self) -> dist.ProcessGroup | None:
        """None for a group of one, and for one that was left."""
        return self.connection.process_group if self.connection else None

    @property
    def size(self) -> int:
        """Number of members."""
        return len(self.coords)

    def __str__(self) -> str:
        return product(self.axes)


def members(mesh: Mesh, axes: tuple[Axis, ...], rank: int) -> Group:
    """The devices of a mesh that one talks to along `axes`, without a process group."""
    mine = next(sorted(ranks) for ranks in mesh.groups(axes) if rank in ranks)
    coords = tuple(mesh.coord(one) for one in mine)
    return Group(axes, coords, mine.index(rank), tuple(mine))


def between(mesh: Mesh, axes: Iterable[Axis]) -> tuple[Axis, ...]:
    """Those of `axes` along which there is more than one device, in mesh order."""
    wanted = set(axes)
    return tuple(axis for axis in mesh.axes if axis in wanted and axis.size > 1)


class Groups:
    """One device's view of the mesh: its coordinate, its torch device and its process groups."""

    def __init__(self, mesh: Mesh, rank: int = 0, device: torch.device | None = None) -> None:
        self.mesh = mesh
        self.rank = rank
        self.coord = mesh.coord(rank)
        self.device = device or torch.device("cpu")
        self._groups: dict[tuple[tuple[Axis, ...], str], Group] = {}
        self._pairs: dict[tuple[Axis, int, int, str], Group | None] = {}
        self._host: Connection | None = None
        self._meshes: dict[tuple[str, ...], DeviceMesh] = {}

    def of(self, axes: Iterable[Axis], stream: str = "") -> Group:
        """The group along `axes`; made if need be, on every rank together.

        Args:
            stream: the name of what is sent over a process group of its own.
        """
        key = between(self.mesh, axes), stream
        if key not in self._groups:
            self._groups[key] = self._connected(members(self.mesh, key[0], self.rank), stream)
        return self._groups[key]

    def pair(self, axis: Axis, first: int, second: int, stream: str) -> Group | None:
        """This device and the one that differs from it along an axis; None if it has no part.

        Made if need be, on every rank together, also on those that have no part.

        Args:
            first: the places along the axis of the two.
            stream: the name of what is sent over a process group of its own.
        """
        key = axis, first, second, stream
        if key not in self._pairs:
            self._pairs[key] = self._paired(axis, (first, second), stream)
        return self._pairs[key]

    def _paired(self, axis: Axis, places: tuple[int, int], stream: str) -> Group | None:
        every = self.mesh.groups((axis,))
        pairs = [[ranks[place] for place in places] for ranks in every]
        name = f"{axis} {places[0]}-{places[1]} {stream}".strip()
        made = [(ranks, _made(name, sorted(ranks))) for ranks in pairs]
        found = [(sorted(ranks), group) for ranks, group in made if self.rank in ranks]
        if not found:
            return None
        ((mine, group),) = found
        coords = tuple(self.mesh.coord(one) for one in mine)
        at = mine.index(self.rank)
        return Group((axis,), coords, at, tuple(mine), dist.get_backend(), Connection(group))

    def everyone(self) -> Group:
        """The group of all devices."""
        return self.of(self.mesh.axes)

    def on_host(self) -> Connection | None:
        """All devices, over gloo: a group of its own where the others are on GPUs. Collective."""
        if self._host is None and self.mesh.devices > 1:
            gloo = dist.get_backend() == "gloo"
            made = None if gloo else _made("agreement", backend="gloo")
            self._host = Connection(dist.group.WORLD if gloo else made)
        return self._host

    def _connected(self, group: Group, stream: str) -> Group:
        """The group with a process group of its own. Collective."""
        if group.size == 1:
            return group
        every = [sorted(ranks) for ranks in self.mesh.groups(group.axes)]
        process_group = self._new_group(every, group.axes, stream)
        connection = Connection(process_group)
        return replace(group, backend=dist.get_backend(), connection=connection)

    def _new_group(
        self, members: list[list[int]], axes: tuple[Axis, ...], stream: str = ""
    ) -> dist.ProcessGroup:
        if len(members) == 1 and not stream:
            assert dist.group.WORLD is not None
            return dist.group.WORLD
        name = f"{product(axes)} {stream}".strip()
        made = [_made(name, ranks) for ranks in members]
        mine = next(i for i, ranks in enumerate(members) if self.rank in ranks)
        return made[mine]

    def device_mesh(self, order: tuple[str, ...] | None = None) -> DeviceMesh:
        """The torch `DeviceMesh` over our own groups, its dims in the given order of axes.

        Needed only where tensors leave as `DTensor`. Collective: call it on every rank.
        """
        names = order or tuple(axis.name for axis in self.mesh.axes)
        if names not in self._meshes:
            self._meshes[names] = self._device_mesh(names)
            _MESHES.append(self._meshes[names])
        return self._meshes[names]

    def _device_mesh(self, names: tuple[str, ...]) -> DeviceMesh:
        sizes = tuple(axis.size for axis in self.mesh.axes)
        places = [axis.name for axis in self.mesh.axes]
        ranks = torch.arange(self.mesh.devices).view(sizes)
        ranks = ranks.permute([places.index(name) for name in names])
        groups = [self._axis_group(self.mesh[name]) for name in names]
        kind = self.device.type
        if len(groups) == 1:
            return DeviceMesh.from_group(groups[0], kind, mesh_dim_names=names)
        return DeviceMesh.from_group(groups, kind, mesh=ranks, mesh_dim_names=names)

    def _axis_group(self, axis: Axis) -> dist.ProcessGroup:
        if axis.size > 1:
            found = self.of((axis,)).process_group
            assert found is not None
            return found
        return self._new_group([[rank] for rank in range(self.mesh.devices)], (axis,))


def _made(
    name: str, ranks: list[int] | None = None, backend: str | None = None
) -> dist.ProcessGroup:
    """A new process group, whose calls wait as long as those of the first one. Collective.

    PyTorch would give it half an hour, whatever the first one has.
    """
    assert dist.group.WORLD is not None
    limit = timeout_of(dist.group.WORLD)
    made: dist.ProcessGroup = dist.new_group(ranks, limit, backend, group_desc=name)
    return made


def choose_device(kind: str, local_rank: int) -> torch.device:
    """The torch device of this process: `cpu`, or one GPU per process of the node.

    Raises:
        RunError: SH0607, there is no such GPU.
    """
    if kind == "cpu":
        return torch.device("cpu")
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if local_rank >= found:
        raise RunError(
            "SH0607",
            f"rank {local_rank} of this node needs a GPU of its own, and there are {found}",
            help="run with `--device cpu`, or on more GPUs",
        )
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


def join(mesh: Mesh, kind: str = "cpu", timeout_s: float = TIMEOUT_S) -> Groups:
    """Meet the other processes, as the environment says (`RANK`, `WORLD_SIZE`, ...).

    A mesh of one device needs no environment and no process group.

    Raises:
        RunError: SH0601, not as many processes as devices; SH0607, no GPU; SH0610, not all come.
    """
    check_world_size(mesh)
    rank = int(os.environ.get("RANK", "0"))
    device = choose_device(kind, int(os.environ.get("LOCAL_RANK", "0")))
    WATCH.starts_only = device.type == "cuda"
    if mesh.devices > 1 and not dist.is_initialized():
        _meet(device, timeout_s)
    if mesh.devices > 1:
        atexit.register(_at_exit)
    if mesh.devices > 1 and not supervised():
        listen(default_store(), rank)
    return Groups(mesh, rank, device)


def _meet(device: torch.device, timeout_s: float) -> None:
    """Wait for the other processes."""
    on_gpu, limit = device.type == "cuda", datetime.timedelta(seconds=timeout_s)
    backend, device_id = ("nccl", device) if on_gpu else ("gloo", None)
    try:
        dist.init_process_group(backend, timeout=limit, device_id=device_id)
    except dist.DistStoreError as error:
        raise RunError(
            "SH0610",
            f"the processes of other nodes have not come within {timeout_s:g} s",
            help="start the command on every node; `--timeout` waits longer",
        ) from error


def check_world_size(mesh: Mesh) -> None:
    """Raise SH0601 if we run under a launcher with a number of processes that is not the mesh's."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world != mesh.devices:
        raise RunError(
            "SH0601",
            f"{world} processes were started, and the mesh ({mesh}) has {mesh.devices} devices",
            help=f"start {mesh.devices} processes, or change the mesh",
        )


def leave() -> None:
    """Leave the process groups, if any, and wait for their threads."""
    if dist.is_initialized():
        dist.destroy_process_group()
    Connection.close_all()


def _at_exit() -> None:
    """Leave, unless this process ends by an error: then the others may be gone, and calls hang."""
    if not hasattr(sys, "last_value"):
        leave()
