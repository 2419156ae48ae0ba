"""Ctrl-C and SIGTERM at the supervisor: the workers end, after saving where they can."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from shardlang.runtime.handlers import Handlers
from shardlang.runtime.reports import any_saving, ask_to_end, longest_step_s, positions
from shardlang.runtime.workers import Worker

ENDING = "ending after the step that is under way, and saving; a second signal ends at once"

_NOTHING = "the signal came before the first step or behind the last one: there was nothing to save"

STEP_S = 120.0
"""How long the ranks have to end the step that is under way, or three steps if that is longer."""


class Signals:
    """Signals kept until the supervisor looks: nothing is cut off half-way.

    Attributes:
        count: how many have come.
    """

    def __init__(self, saves: bool = False) -> None:
        self.count = 0
        self._saves, self._forwarded = saves, False
        self._since = 0.0
        self._number = 0
        self._handlers = Handlers()

    def __enter__(self) -> Signals:
        self._handlers.set(self._keep)
        return self

    def __exit__(self, *error: object) -> None:
        self._handlers.restore()

    def _keep(self, number: int, frame: object) -> None:
        self._number = number
        self.count += 1

    def check(self, workers: Sequence[Worker], folder: Path) -> None:
        """Ask the workers to save and end at the first signal; raise what others mean.

        Ranks that do not end their step are not waited for: some wait for one that never comes.
        """
        if not self.count:
            return
        if not self._saves or self.count > 1:
            self._raise(self._number)
        if not self._forwarded:
            self._forwarded, self._since = True, time.monotonic()
            ask_to_end(folder, self._number)
            for worker in workers:
                worker.process.send_signal(signal.SIGTERM)
            print(ENDING, file=sys.stderr)
        self._give_up(folder)

    def _give_up(self, folder: Path) -> None:
        limit_s = max(STEP_S, 3 * longest_step_s(folder))
        if time.monotonic() - self._since < limit_s or any_saving(folder):
            return
        seen = (f"rank {r} in {name or 'no collective'}" for r, name in positions(folder).items())
        print(
            f"the step did not end within {limit_s:.0f} s; nothing is saved; last seen:"
            f" {', '.join(list(seen)[:4])}",
            file=sys.stderr,
        )
        self.count += 1
        self._raise(self._number)

    def explain_death(self) -> None:
        """Raise what the signal means where it ended a worker that had nothing to save yet."""
        if self._forwarded:
            print(_NOTHING, file=sys.stderr)
            self._raise(self._number)

    def raise_for(self, workers: Sequence[Worker]) -> None:
        """Raise what ended the workers, after they have saved."""
        ended = [worker.process.returncode for worker in workers if worker.saved]
        if ended:
            self._raise(self._number or ended[0] - 128)

    @staticmethod
    def _raise(number: int) -> None:
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + number)
