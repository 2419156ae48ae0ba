"""Ending a run between two steps, so that what has been trained can be saved.

The first signal asks the run to end after the step that is under way; all ranks agree on the step.
An evaluation that is under way is dropped.
A rank that waits for a batch of the person's stops waiting. A second signal ends the process at
once. A rank whose batches end, or raise, ends all others too.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from types import FrameType

import torch

from shardlang.runtime.data import Batch
from shardlang.runtime.errors import RunError
from shardlang.runtime.groups import Groups
from shardlang.runtime.handlers import Handlers
from shardlang.runtime.reports import FOLDER, step_reports
from shardlang.runtime.signals import ENDING
from shardlang.runtime.trainer.evaluation import DroppedError
from shardlang.runtime.transport import Wire
from shardlang.runtime.watch import named

ECHO_S = 0.5
"""Signals within this time are one: a terminal and a launcher may both send theirs."""

_FAILED = 1 << 16


class _Interrupted(BaseException):
    """The first signal, where a rank waits for a batch that is not needed any more."""


class Stop:
    """Why a run ends early; a context manager that listens to SIGINT and SIGTERM if it is to save.

    Attributes:
        number: the signal that asked for the end, agreed by all ranks; 0 for none.
        error: what this rank's batches raised.
        failed: whether the batches of some rank raised.
    """

    def __init__(self, groups: Groups, saves: bool = True) -> None:
        self.saves = saves
        self.number = 0
        self.error: Exception | None = None
        self.failed = False
        self._tells = groups.rank == 0 and FOLDER not in os.environ
        self._transport = Wire(groups.everyone())
        self._device = groups.device
        self._asked, self._asked_at = 0, 0.0
        self._in_batches = False
        self._reports = step_reports(groups.rank)
        self._handlers = Handlers()

    def __enter__(self) -> Stop:
        if self.saves:
            self._handlers.set(self._heard)
        return self

    def __exit__(self, *error: object) -> None:
        self._handlers.restore()

    def _heard(self, number: int, frame: FrameType | None) -> None:
        if not self._asked:
            self.ask(self._reports.asked(number))
            if self._tells:
                os.write(2, f"{ENDING}\n".encode())
            if self._in_batches:
                self._in_batches = False
                raise _Interrupted
        elif time.monotonic() - self._asked_at > ECHO_S:
            raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)

    def ask(self, number: int) -> None:
        """End the run after the step that is under way."""
        self._asked, self._asked_at = number, time.monotonic()

    def saving(self) -> None:
        """What has been trained is saved now; the supervisor waits for it."""
        self._reports.saving()

    def batches(self, given: Iterator[Batch]) -> Iterator[Batch]:
        """The batches up to the end that the ranks agree on. Collective, once for each batch."""
        while True:
            try:
                whole = self._next(given)
            except _Interrupted:
                whole = None
            if self._agreed(whole is None) or whole is None:
                return
            began = time.monotonic()
            yield whole
            self._reports.took(time.monotonic() - began)

    def evaluated(self, given: Iterator[Batch]) -> Iterator[Batch]:
        """The batches of an evaluation. Collective, once for each batch.

        Raises:
            DroppedError: the ranks agree to end.
        """
        for whole in given:
            if self._agreed(False):
                raise DroppedError
            yield whole

    def _next(self, given: Iterator[Batch]) -> Batch | None:
        """The next batch; none, once this rank is asked to end: some batches never come."""
        try:
            self._in_batches = True
            return None if self._asked or self.number else next(given, None)
        except Exception as error:
            self.error = error
            return None
        finally:
            self._in_batches = False

    def _agreed(self, ended: bool) -> bool:
        """Whether some rank is to end; the greatest of the signals is everyone's.

        One that comes while the ranks agree is told the next time.
        """
        code = self._asked + _FAILED * (self.error is not None)
        mine = torch.tensor([code, ended, not ended], device=self._device)
        found = named("agreement to go on", self._transport.all_reduce, mine, "max").tolist()
        self.number, self.failed = found[0] % _FAILED, found[0] >= _FAILED
        if found[1] and found[2] and not found[0]:
            self.error = RunError(
                "SH0612",
                "the batches of some ranks ended before those of the others",
                help="let `batches` give the same batches on every rank",
            )
        return bool(found[0] or found[1])
