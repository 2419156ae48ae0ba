"""A process that has imported what ranks of tests import, and forks them: `zygote.py PARENT`.

A rank of its own spends seconds on imports, and the suite starts hundreds of them. A fork of this
process is a real process all the same: with a number, a session, an environment, a folder, streams
and an end of its own. Nothing here has a thread, a process group or a device.

One connection stands for one process. The client sends what to start; the answers are its number
and, when it has ended, its exit status. A client that goes away takes its process with it.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import runpy
import select
import signal
import socket
import sys
from pathlib import Path
from typing import Any

LARGEST = 1 << 20
TASKS = Path("/proc/self/task")
IMPORTED = (
    "torch.distributed.checkpoint.state_dict", "torch.distributed.fsdp", "torch.distributed.tensor",
    "torch._dynamo", "torch._export.passes.collect_tracepoints_pass",
    "torch._functorch._aot_autograd.graph_compile", "torch.fx.experimental.proxy_tensor",
    "torch.utils.module_tracker", "safetensors.torch", "networkx", "scipy",
    "torch.export._trace", "shardlang.api", "shardlang.cli.run", "shardlang.runtime.progress",
    "shardlang.training.run", "shardlang.training.saving",
)  # fmt: skip
BASE = [path for path in sys.path[1:] if path not in os.environ.get("PYTHONPATH", "").split(":")]


def address_of(pid: int) -> str:
    """Where a zygote listens once it is ready, in the abstract namespace of Unix sockets."""
    return f"shardlang-zygote-{pid}-"


class Zygote:
    """The server: one connection for each process that runs."""

    def __init__(self, address: str) -> None:
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind(f"\0{address}")
        self._listener.listen(64)
        self._clients: dict[socket.socket, int] = {}
        self._ends: dict[int, socket.socket] = {}

    def serve(self) -> dict[str, Any]:
        """Fork what clients ask for. Returns in the forked processes alone: what they shall do."""
        while True:
            ready, _, _ = select.select([self._listener, *self._ends, *self._clients], [], [])
            for one in ready:
                if one in self._ends:
                    self._forget(self._ends[one])
                elif one in self._clients:
                    os.kill(self._clients[one], signal.SIGKILL)
                    self._forget(one)
            if self._listener in ready and (order := self._accept()) is not None:
                return order

    def _accept(self) -> dict[str, Any] | None:
        """Fork for a new client; what to do, in the forked process."""
        client, _ = self._listener.accept()
        message, streams, _, _ = socket.recv_fds(client, LARGEST, 3)
        assert len(list(TASKS.iterdir())) == 1, "a fork would lose threads"
        pid = os.fork()
        if pid == 0:
            self._leave(client, streams)
            order: dict[str, Any] = json.loads(message)
            return order
        for stream in streams:
            os.close(stream)
        self._clients[client] = pid
        self._ends[os.pidfd_open(pid)] = client
        _tell(client, pid)
        return None

    def _leave(self, client: socket.socket, streams: list[int]) -> None:
        """Hold nothing of the server any more, in a forked process, but the streams of its own."""
        for held in (client, self._listener, *self._clients):
            held.close()
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
        for number in (*self._ends, *streams):
            os.close(number)

    def _forget(self, client: socket.socket) -> None:
        """Tell a client the exit status of its process, which has ended or does so at once."""
        if client not in self._clients:
            return
        _, status = os.waitpid(self._clients.pop(client), 0)
        _tell(client, os.waitstatus_to_exitcode(status))
        client.close()
        ended = next(number for number, one in self._ends.items() if one is client)
        del self._ends[ended]
        os.close(ended)


def _tell(client: socket.socket, number: int) -> None:
    with contextlib.suppress(OSError):
        client.send(str(number).encode())


def become(order: dict[str, Any]) -> None:
    """Turn this fork into the process that a fresh Python would be for the same command."""
    if order["session"]:
        os.setsid()
    os.chdir(order["cwd"])
    os.environ.clear()
    os.environ.update(order["env"])
    if "SHARDLANG_PARENT" in os.environ:
        os.environ["SHARDLANG_PARENT"] = str(os.getppid())
    gc.set_threshold(700, 10, 10)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    _reset_libraries(order["zygotes"])
    _run(order["command"][1:])


def _reset_libraries(zygotes: list[str]) -> None:
    """What libraries read once at their import, or draw from the system."""
    import numpy as np
    import torch

    from tests.runtime.forking import use

    np.random.seed()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    use(zygotes)


def _run(args: list[str]) -> None:
    """Run a script, or `-m module`, as the main module."""
    paths = [path for path in os.environ.get("PYTHONPATH", "").split(":") if path]
    if args[0] == "-m":
        sys.argv[:] = args[1:]
        sys.path[:] = [str(Path.cwd()), *paths, *BASE]
        runpy.run_module(args[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv[:] = args
        sys.path[:] = [str(Path(args[0]).resolve().parent), *paths, *BASE]
        runpy.run_path(args[0], run_name="__main__")


def main() -> None:
    """Import, build the parser, and serve; a fork runs its command."""
    import importlib

    gc.disable()
    for name in IMPORTED:
        importlib.import_module(name)
    with contextlib.suppress(ImportError):
        importlib.import_module("transformers.models.llama.modeling_llama")
    importlib.import_module("shardlang.grammar.parser").parse("")  # which builds the parser
    gc.freeze()
    gc.enable()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    from shardlang.runtime.reports import die_with_parent

    die_with_parent(int(sys.argv[1]))
    become(Zygote(address_of(os.getpid())).serve())


if __name__ == "__main__":
    main()
