"""Whether a step has room on this machine, which is said before the first one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from shardlang.compiler.driver import Compiled
from shardlang.ir.node import info
from shardlang.plan import plan_of
from shardlang.plan.text import bytes_text
from shardlang.runtime.errors import RunError
from shardlang.runtime.groups import Groups

_TIMES = 6
"""A step holds less than so many times all values of the program: their gradients, and states."""


def check_room(compiled: Compiled, groups: Groups, saves: bool) -> None:
    """Raise SH0666 if a step needs more memory than there is.

    One process of each node looks. The plan is made only where a step might not have room.

    Args:
        saves: whether copies of the state lie on the host while they are written.
    """
    if os.environ.get("LOCAL_RANK", "0") != "0":
        return
    sharing = 1 if groups.device.type == "cuda" else int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    free = free_bytes(groups.device)
    if free is None or sharing * _TIMES * sum(_bytes(compiled)) < free:
        return
    memory = plan_of(compiled).memory
    copies = memory.params_bytes + memory.buffers_bytes + memory.optimizer_bytes
    need = memory.peak_bytes + copies * (saves and groups.device.type == "cpu")
    if sharing * need > free:
        raise _too_little(need, free, sharing, memory.peak.module)


def _too_little(need: int, free: int, sharing: int, module: str) -> RunError:
    among = f" for {sharing} of them" if sharing > 1 else ""
    where = f", most of it in `{module}`" if module else ""
    return RunError(
        "SH0666",
        f"a process needs {bytes_text(need)} for a step{where}, and {bytes_text(free)} are free"
        f" here{among}",
        help='split more (`store "**" over dp`), compute more again (`recompute`), or let a step'
        " have more parts (`accumulate`); `shardlang plan` says what lies where",
    )


def _bytes(compiled: Compiled) -> Iterator[int]:
    """The bytes of every value of the program, whole."""
    for node in compiled.program.graph.nodes:
        value = info(node).value
        for tensor in value if isinstance(value, tuple | list) else (value,):
            if isinstance(tensor, Tensor):
                yield tensor.numel() * tensor.element_size()


def free_bytes(device: torch.device) -> int | None:
    """The memory that is free on a GPU, or for the processes of this node; None if unknown."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    found = [number for number in (_of_machine(), _of_group()) if number is not None]
    return min(found, default=None)


def _of_machine() -> int | None:
    lines = _lines(Path("/proc/meminfo"))
    known = {line.split(":")[0]: line.split()[1] for line in lines if len(line.split()) > 1}
    return int(known["MemAvailable"]) * 1024 if "MemAvailable" in known else None


def _of_group() -> int | None:
    """What is left of the limit of a container."""
    folder = Path("/sys/fs/cgroup")
    limit, used = _lines(folder / "memory.max"), _lines(folder / "memory.current")
    if not limit or not used or limit[0] == "max":
        return None
    stats = dict(line.split()[:2] for line in _lines(folder / "memory.stat"))
    return int(limit[0]) - int(used[0]) + int(stats.get("inactive_file", 0))


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
