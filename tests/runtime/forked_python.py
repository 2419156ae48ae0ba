"""What stands for Python in a command of a test: a zygote forks the process (`forking.python`).

This process has its streams, environment and folder; it hands on signals, and ends as the fork.
Only the standard library is imported, so that it starts at once.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from pathlib import Path

HANDED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


def main(addresses: list[str]) -> None:
    """Be the Python of `sys.argv`; ranks in turn are forked by each of the zygotes."""
    arguments = [one for one in sys.argv[1:] if one != "-u"]
    order = {
        "command": [sys.executable, *arguments], "env": dict(os.environ), "cwd": str(Path.cwd()),
        "session": True, "zygotes": addresses,
    }  # fmt: skip
    zygote = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    zygote.connect(f"\0{addresses[int(os.environ.get('RANK', '0')) % len(addresses)]}")
    socket.send_fds(zygote, [json.dumps(order).encode()], [0, 1, 2])
    pid = int(zygote.recv(64))
    for number in HANDED_ON:
        signal.signal(number, lambda number, _: os.kill(pid, number))
    _end_as(int(zygote.recv(64) or -signal.SIGKILL))


def _end_as(status: int) -> None:
    """Exit, or die of a signal."""
    if status < 0:
        signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    sys.exit(status)
