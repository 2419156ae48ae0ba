"""`subprocess` for the launcher under test, with processes that a zygote forks.

Two zygotes serve a test process, or all of a suite, ranks in turn: each has a hash seed of its own,
so that ranks still differ in the order of their sets, as ranks of a real job do.
"""

from __future__ import annotations

import atexit
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from subprocess import DEVNULL, TimeoutExpired
from typing import IO

from shardlang.runtime import workers
from tests.runtime.zygote import address_of

__all__ = [
    "DEVNULL", "Popen", "TimeoutExpired", "completed", "forked_ranks", "python", "use",
    "zygotes_of",
]  # fmt: skip

FOLDER = Path(__file__).parent
SEEDS = ("1", "2")
START_S = 120.0
SHARED = "SHARDLANG_TEST_ZYGOTES"
"""The environment variable that holds the addresses of zygotes that several processes share."""
_ADDRESSES: list[str] = []
_TURN = count()


class Popen:
    """A process that a zygote has forked, with what the launcher asks of `subprocess.Popen`."""

    def __init__(
        self,
        command: Sequence[str],
        env: Mapping[str, str],
        stdin: int | None = None,
        stdout: IO[bytes] | None = None,
        stderr: IO[bytes] | None = None,
        start_new_session: bool = False,
        cwd: Path | None = None,
    ) -> None:
        assert command[0] == sys.executable, command
        self.args, self.returncode = command, None
        order = {
            "command": list(command), "env": dict(env), "cwd": str(cwd or Path.cwd()),
            "session": start_new_session, "zygotes": addresses(),
        }  # fmt: skip
        self._zygote = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._zygote.connect(f"\0{addresses()[next(_TURN) % len(addresses())]}")
        with Path(os.devnull).open("rb") as nothing:
            streams = [nothing.fileno(), stdout.fileno() if stdout else 1]
            streams.append(stderr.fileno() if stderr else 2)
            socket.send_fds(self._zygote, [json.dumps(order).encode()], streams)
        self.pid = int(self._zygote.recv(64))

    returncode: int | None

    def poll(self) -> int | None:
        """The exit status, negative for a signal; None while the process runs."""
        if self.returncode is None and select.select([self._zygote], [], [], 0)[0]:
            self._ended()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """The exit status, when the process has ended.

        Raises:
            TimeoutExpired: the time is up.
        """
        if self.returncode is None:
            if not select.select([self._zygote], [], [], timeout)[0]:
                raise TimeoutExpired(self.args, timeout or 0.0)
            self._ended()
        assert self.returncode is not None
        return self.returncode

    def _ended(self) -> None:
        said = self._zygote.recv(64)
        self._zygote.close()
        self.returncode = int(said) if said else -signal.SIGKILL

    def send_signal(self, number: int) -> None:
        """Send a signal, unless the process has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End the process at once."""
        self.send_signal(signal.SIGKILL)


def completed(
    command: Sequence[str], env: Mapping[str, str], timeout: float, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """A command of Python's in a fork, its own ranks forked too; what `subprocess.run` gives.

    Raises:
        TimeoutExpired: the time is up; the process and its ranks have been ended.
    """
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        process = Popen(command, env, stdout=out, stderr=err, start_new_session=True, cwd=cwd)
        try:
            process.wait(timeout)
        finally:
            process.kill()
        texts = [_read(stream) for stream in (out, err)]
    assert process.returncode is not None
    return subprocess.CompletedProcess(command, process.returncode, *texts)


def python(folder: Path) -> str:
    """A program in a folder that stands for Python, for commands that others start."""
    program = folder / "forked-python"
    program.write_text(
        f"#!{sys.executable} -SE\nimport sys\nsys.path.insert(0, {str(FOLDER)!r})\n"
        f"from forked_python import main\nmain({addresses()!r})\n"
    )
    program.chmod(0o755)
    return str(program)


def _read(stream: IO[bytes]) -> str:
    stream.seek(0)
    return stream.read().decode()


def use(zygotes: Sequence[str] = ()) -> None:
    """Have the launcher of this process fork its ranks from now on, by these zygotes if given."""
    _ADDRESSES[:] = zygotes or _ADDRESSES
    vars(workers)["subprocess"] = sys.modules[__name__]


@contextmanager
def forked_ranks(zygotes: Sequence[str] = ()) -> Iterator[None]:
    """The launcher forks its ranks inside, by these zygotes if given."""
    before, kept = vars(workers)["subprocess"], list(_ADDRESSES)
    use(zygotes)
    try:
        yield
    finally:
        vars(workers)["subprocess"] = before
        _ADDRESSES[:] = kept if zygotes else _ADDRESSES


@contextmanager
def zygotes_of(command: Sequence[str], env: Mapping[str, str], count: int) -> Iterator[list[str]]:
    """Zygotes that a command becomes once it is ready to fork; they end with the block."""
    processes = [Popen(command, env, start_new_session=True) for _ in range(count)]
    try:
        for process in processes:
            _wait_for(address_of(process.pid), process)
        yield [address_of(process.pid) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()


def share() -> None:
    """Start zygotes that serve this process and those that it starts, until it ends."""
    if SHARED not in os.environ:
        os.environ[SHARED] = " ".join(address_of(_start(seed).pid) for seed in SEEDS)


def addresses() -> list[str]:
    """Where the zygotes of this process listen; they are started when first asked for."""
    if not _ADDRESSES:
        shared = os.environ.get(SHARED, "").split()
        _ADDRESSES.extend(shared or [address_of(_start(seed).pid) for seed in SEEDS])
        for address in _ADDRESSES:
            _wait_for(address)
    return _ADDRESSES


def _start(seed: str) -> subprocess.Popen[bytes]:
    zygote = subprocess.Popen(
        [sys.executable, str(FOLDER / "zygote.py"), str(os.getpid())],
        env={**os.environ, "PYTHONPATH": str(FOLDER.parents[1]), "PYTHONHASHSEED": seed,
             "OMP_NUM_THREADS": "1"},
        stdin=DEVNULL, stdout=DEVNULL, start_new_session=True,
    )  # fmt: skip
    atexit.register(_end, zygote)
    return zygote


def _end(zygote: subprocess.Popen[bytes]) -> None:
    zygote.kill()
    zygote.wait()


def _wait_for(address: str, process: Popen | None = None) -> None:
    """Wait until a zygote is ready: it listens no sooner."""
    end = time.monotonic() + START_S
    while address not in Path("/proc/net/unix").read_text():
        assert process is None or process.poll() is None, "it failed; standard error says why"
        if time.monotonic() > end:
            raise TimeoutExpired(address, START_S)
        time.sleep(0.05)
