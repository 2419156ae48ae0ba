"""Why a peer is gone: in a loop of one's own, a rank that fails says so in the store.

A rank that ends closes its sockets, and gloo ends the waits of the others, who learn no more than
that. `shardlang run` has a supervisor that knows why; a loop of one's own has the store at which
its processes met.
"""

from __future__ import annotations

import sys
from contextlib import suppress
from datetime import timedelta
from types import TracebackType

from shardlang.ir.compat import Store
from shardlang.runtime.errors import RunError
from shardlang.runtime.tracebacks import first_line

WAIT_S = 2.0
"""How long a rank that has lost a peer waits for the word of the one that failed."""

_KEY = "shardlang/failed"
_LOST = ("connection closed by peer", "connection reset", "connection refused", "broken pipe")


def is_lost(error: BaseException) -> bool:
    """Whether a call failed because a peer is gone."""
    text = str(error).lower()
    return any(word in text for word in _LOST)


class Peers:
    """The word that a failing rank leaves to the others."""

    def __init__(self, store: Store, rank: int) -> None:
        self._store, self._rank = store, rank
        self._before = sys.excepthook
        sys.excepthook = self._failed

    def _failed(
        self, kind: type[BaseException], error: BaseException, trace: TracebackType | None
    ) -> None:
        """Leave the word, unless another rank has, and go on as without."""
        with suppress(RuntimeError):
            self._store.compare_set(_KEY, "", f"rank {self._rank} failed: {first_line(error)}")
        self._before(kind, error, trace)

    def why(self, label: str) -> RunError:
        """Why the call of that label lost a peer."""
        try:
            self._store.wait([_KEY], timedelta(seconds=WAIT_S))
            word, help = self._store.get(_KEY).decode(), "fix what it says"
        except RuntimeError as error:
            timed_out = "timeout" in str(error).lower()
            word = "a rank has ended without an error" if timed_out else "rank 0 is gone"
            help = "look at what the other ranks have printed, and let all of them take each step"
        return RunError("SH0603", f"{word}; this rank lost it in {label}", help=help)


_PEERS: list[Peers] = []


def listen(store: Store, rank: int) -> None:
    """Tell the others of a failure of this rank, and hear of theirs, from now on."""
    if not _PEERS:
        _PEERS.append(Peers(store, rank))


def lost_in(label: str, error: RuntimeError) -> RunError | None:
    """Why a call failed, if it is that a peer is gone and this process listens."""
    return _PEERS[0].why(label) if _PEERS and is_lost(error) else None
