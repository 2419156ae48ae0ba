"""What a failing rank leaves behind for the one message that the person reads.

Every rank of a launched job has a folder in `SHARDLANG_REPORTS`. A rank that fails writes
`<rank>.json` there; while it runs, `<rank>.now` names the collective that it is in.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from shardlang.runtime.errors import RunError
from shardlang.runtime.peers import is_lost
from shardlang.runtime.tracebacks import first_line, users_traceback
from shardlang.runtime.watch import WATCH

FOLDER = "SHARDLANG_REPORTS"
"""The environment variable that names the folder."""

_SIGNAL = "signal"

_STUCK = ("timed out", "timeout")

PUBLISH_EVERY_S = 0.5
_PR_SET_PDEATHSIG = 1


def supervised() -> bool:
    """Whether this process is a worker of our own launcher."""
    return FOLDER in os.environ


@dataclass(frozen=True, slots=True)
class Report:
    """Why one rank failed.

    `kind` is `error` for the rank's own failure, `stuck` for a collective that ran out of time,
    `peer` for one that another rank broke, `killed` for a signal, `exit` for an unexplained exit.
    """

    rank: int
    kind: str
    message: str
    time_s: float = 0.0
    code: str = "SH0603"
    help: str = ""
    exit_status: int = 2
    notes: Sequence[str] = ()
    about: str = ""


def explain(rank: int, error: BaseException) -> Report:
    """The report of an exception."""
    now = time.time()
    if isinstance(error, RunError):
        said = (error.code, error.help, 1, error.notes, error.about)
        return Report(rank, "error", error.message, now, *said)
    text = str(error).strip()
    kind = _kind(error, text.lower())
    if kind != "error" and WATCH.now:
        verb = "waited too long in" if kind == "stuck" else "lost a peer in"
        code = "SH0604" if kind == "stuck" else "SH0603"
        return Report(rank, kind, f"{verb} {WATCH.now}", now, code, exit_status=1)
    trace = users_traceback(error)
    return Report(rank, kind, first_line(error), now, notes=[trace] if trace else [])


def _kind(error: BaseException, text: str) -> str:
    if not isinstance(error, RuntimeError | ConnectionError):
        return "error"
    if is_lost(error):
        return "peer"
    return "stuck" if WATCH.now and any(word in text for word in _STUCK) else "error"


def read(folder: Path) -> list[Report]:
    """The reports of all ranks that failed by an exception."""
    found = []
    for file in sorted(folder.glob("*.json")):
        try:
            found.append(Report(**json.loads(file.read_text())))
        except ValueError:
            continue
    return found


def positions(folder: Path) -> dict[int, str]:
    """The collective that each rank was last seen in; empty for a rank outside collectives."""
    return dict(sorted((int(file.stem), file.read_text()) for file in folder.glob("*.now")))


class StepReports:
    """What a rank tells its supervisor while it trains: its longest step, and that it saves."""

    def __init__(self, folder: Path | None, rank: int) -> None:
        self._folder, self._rank, self._longest_s = folder, rank, 0.0

    def took(self, step_s: float) -> None:
        """A step is done."""
        if self._folder is not None and step_s > 1.5 * self._longest_s:
            self._longest_s = step_s
            _write(self._folder / f"{self._rank}.step", f"{step_s:.3f}")

    def saving(self) -> None:
        """All ranks have ended their last step, and save."""
        if self._folder is not None:
            _write(self._folder / f"{self._rank}.saving", "")

    def asked(self, number: int) -> int:
        """The signal that the supervisor was sent, where it has passed one on as another."""
        if self._folder is None or not (self._folder / _SIGNAL).is_file():
            return number
        return int((self._folder / _SIGNAL).read_text())


def step_reports(rank: int) -> StepReports:
    """The reports of this rank, which go nowhere without a supervisor."""
    folder = os.environ.get(FOLDER)
    return StepReports(Path(folder) if folder is not None else None, rank)


def longest_step_s(folder: Path) -> float:
    """The longest step of all ranks so far, by at most a third too short; 0 before the first."""
    return max((float(file.read_text()) for file in folder.glob("*.step")), default=0.0)


def ask_to_end(folder: Path, number: int) -> None:
    """Tell the ranks which signal asks them to end.

    They are sent SIGTERM: it ends one that does not listen yet without a word, as SIGINT does not.
    """
    _write(folder / _SIGNAL, str(number))


def any_saving(folder: Path) -> bool:
    """Whether the ranks have ended their last step, and save."""
    return any(folder.glob("*.saving"))


@contextmanager
def reporting(rank: int) -> Iterator[None]:
    """Run a rank's work; on failure leave a report and end the process.

    Without a supervisor (no folder in the environment) exceptions pass through; one of the person's
    own code as a `RunError` with their traceback.
    """
    folder = os.environ.get(FOLDER)
    if folder is None:
        with _persons_faults():
            yield
        return
    die_with_parent(int(os.environ.get("SHARDLANG_PARENT", os.getppid())))
    _Publisher(Path(folder) / f"{rank}.now").start()
    try:
        yield
    except BaseException as error:
        if isinstance(error, SystemExit):
            raise
        report = explain(rank, error)
        _write(Path(folder) / f"{rank}.json", json.dumps(asdict(report)))
        _write(Path(folder) / f"{rank}.traceback", traceback.format_exc())
        os._exit(report.exit_status)


@contextmanager
def _persons_faults() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        trace = "" if hasattr(error, "code") else users_traceback(error)
        if not trace:
            raise
        help = "fix what it says"
        raise RunError("SH0603", first_line(error), help=help, notes=[trace]) from error


def die_with_parent(parent: int) -> None:
    """Have the kernel end this process when its parent, a supervisor, is gone, where it can."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _write(path: Path, text: str) -> None:
    """Write a whole file at once, so that no reader sees half of it."""
    draft = path.with_suffix(path.suffix + ".draft")
    draft.write_text(text)
    draft.replace(path)


class _Publisher(threading.Thread):
    """Writes the name of the current collective to a file while it lasts."""

    def __init__(self, path: Path) -> None:
        super().__init__(daemon=True)
        self._path = path

    def run(self) -> None:
        """Publish until the process ends."""
        last: str | None = None
        while self._path.parent.is_dir():
            if last != WATCH.now:
                last = WATCH.now
                _write(self._path, last)
            time.sleep(PUBLISH_EVERY_S)
