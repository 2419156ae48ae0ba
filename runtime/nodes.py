"""How the supervisors of several nodes meet and hear of each other's failures.

Node 0 hosts the store that the workers use as well. Each supervisor writes a counter there every
few seconds; one whose counter stands still is gone.
"""

from __future__ import annotations

import datetime
import json
import socket
import time
from dataclasses import asdict
from types import TracebackType

from shardlang.ir.compat import TCPStore
from shardlang.runtime.errors import RunError
from shardlang.runtime.reports import Report

BEAT_S = 2.0
SILENT_S = 20.0
"""A node that has been silent for so long is gone."""
MEET_S = 300.0
_FAILED = "shardlang/failed"


class Nodes:
    """This node among the nodes of the job; a context manager that holds the store."""

    def __init__(self, count: int, node: int, endpoint: str) -> None:
        """Nothing is asked yet.

        Raises:
            RunError: SH0610, the endpoint is none.
        """
        self.count, self.node = count, node
        self.address = _parse(endpoint) if count > 1 else ("127.0.0.1", 0)
        self._seen: dict[int, tuple[bytes, float]] = {}
        self._next_beat = 0.0
        self._beats = 0
        self._said_done = False

    def __enter__(self) -> Nodes:
        if self.node == 0:
            self._host()
        else:
            self._store = _client(self.address, self.node)
        return self

    def _host(self) -> None:
        host, port = self.address
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except OSError as error:
            raise RunError(
                "SH0610", f"cannot listen at {host}:{port}: {error.strerror}",
                help="give an address of this node and a free port",
            ) from error  # fmt: skip
        listener.listen(1024)
        self.address = (host, listener.getsockname()[1])
        self._store = TCPStore(
            *self.address, None, True, wait_for_workers=False, master_listen_fd=listener.detach()
        )

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.node == 0 and self.count > 1:
            time.sleep(2 * BEAT_S)  # the others read the end of the job from this node's store
        del self._store

    def announce(self, report: Report) -> None:
        """Tell the other nodes that the job has failed."""
        if self.count > 1 and report.kind != "gone":
            try:
                self._store.set(_FAILED, json.dumps(asdict(report)))
            except RuntimeError:
                return

    def failure(self, done: bool) -> Report | None:
        """Another node's failure, if there is one."""
        now = time.monotonic()
        news = done and not self._said_done
        if self.count == 1 or (now < self._next_beat and not news):
            return None
        self._next_beat = now + BEAT_S
        try:
            return self._exchange_beats(now, done)
        except RuntimeError:
            return _gone(0)

    def _exchange_beats(self, now: float, done: bool) -> Report | None:
        self._beats += 1
        self._store.set(_beat(self.node), "done" if done else str(self._beats))
        self._said_done = done
        if self._store.check([_FAILED]):
            return Report(**json.loads(self._store.get(_FAILED)))
        for other in range(self.count):
            if other == self.node or not self._store.check([_beat(other)]):
                continue
            beat = self._store.get(_beat(other))
            if beat != self._seen.get(other, (b"", 0.0))[0]:
                self._seen[other] = (beat, now)
            elif beat != b"done" and now - self._seen[other][1] > SILENT_S:
                return _gone(other)
        return None

    def cause(self) -> Report | None:
        """Another node's failure, once it has had the time to say so."""
        deadline = time.monotonic() + 2 * BEAT_S
        while self.count > 1 and time.monotonic() < deadline:
            found = self.failure(done=False)
            if found is not None:
                return found
            time.sleep(BEAT_S / 10)
        return None

    def all_done(self) -> bool:
        """Whether every node's workers have ended well, and the others know it of this node's."""
        if self.count > 1 and not self._said_done:
            return False
        others = [self._seen.get(other, (b"", 0.0))[0] for other in range(self.count)]
        return all(beat == b"done" for i, beat in enumerate(others) if i != self.node)


def _beat(node: int) -> str:
    return f"shardlang/beat/{node}"


def _gone(node: int) -> Report:
    return Report(-1, "gone", f"node {node} does not answer any more", exit_status=1)


def _parse(endpoint: str) -> tuple[str, int]:
    host, _, port = endpoint.rpartition(":")
    if not host or not port.isdigit():
        raise RunError(
            "SH0610", f"`{endpoint}` is not an endpoint",
            help="give the address of node 0 as `host:port`",
        )  # fmt: skip
    return host, int(port)


def _takes_place(store: TCPStore, node: int) -> bool:
    """Take the place of a node in the job of a store, which a node has once.

    Node 0 holds the store of a job that has failed for a while yet, at the endpoint where the next
    one begins. A node that has lost its place there, or whose command is started anew, waits for
    that one.
    """
    return bool(store.add(f"shardlang/place/{node}", 1) == 1)


def _client(address: tuple[str, int], node: int) -> TCPStore:
    """The store of node 0, once it answers, of a job in which the node's place is free."""
    deadline = time.monotonic() + MEET_S
    where = f"{address[0]}:{address[1]}"
    while True:
        fault: Exception | None = None
        try:
            socket.create_connection(address, BEAT_S).close()
            found = TCPStore(*address, None, False, timeout=datetime.timedelta(seconds=MEET_S))
            if _takes_place(found, node):
                return found
            message = f"another command is node {node} of the job at {where}"
            help = "give every node its own `--node-rank`, or end that job first"
        except (OSError, RuntimeError, ValueError) as error:
            fault, message = error, f"node 0 does not answer at {where}"
            help = "start the command on node 0 too, with the same endpoint"
        if time.monotonic() > deadline:
            raise RunError("SH0610", message, help=help) from fault
        time.sleep(BEAT_S / 10)
