"""The folder of a run: what it is, what it did step by step, and who is at it.

spec.shard    the spec, as it was
run.json      versions, mesh, seed, program; when it began, and how it ended
log.jsonl     a line for each step, and one where the run was resumed
run.lock      held while a process runs; a killed process gives it back
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import TextIO

from shardlang.runtime.errors import RunError
from shardlang.runtime.folder import cannot_write
from shardlang.runtime.reports import explain
from shardlang.runtime.trainer.records import Record
from shardlang.runtime.trainer.trainer import Trainer

SPEC, RUN, LOG, LOCK = "spec.shard", "run.json", "log.jsonl", "run.lock"
RUNNING, ENDED, INTERRUPTED, FAILED, KILLED = "running", "ended", "interrupted", "failed", "killed"
"""The states of a run; a killed one is found by its lock, which nobody holds."""


class RunFolder:
    """The folder of one run, on rank 0. A context manager: it holds the lock, and notes the end.

    Attributes:
        was_killed: a process before this one held the lock to its death.
    """

    def __init__(self, folder: Path, spec: str, about: Mapping[str, object]) -> None:
        """Take the folder.

        Args:
            spec: the text of the spec.
            about: what the run is, as JSON holds it.

        Raises:
            RunError: SH0664, another run is at it; SH0609, it cannot be written.
        """
        self.folder, self._about = folder, dict(about)
        self._spec, self._state, self._message = spec, ENDED, ""
        self._log: TextIO | None = None
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = (folder / LOCK).open("a+")
            self.was_killed = self._locked()
        except OSError as error:
            raise cannot_write(folder, error) from error

    def _locked(self) -> bool:
        """Lock the folder; whether the one before did not give it back."""
        if not self._is_free():
            self._lock.close()
            raise RunError(
                "SH0664",
                f"a run is under way in `{self.folder}`{_holder(self.folder)}",
                help="choose another folder, or wait for its end",
            )
        self._lock.seek(0)
        held = bool(self._lock.read().strip())
        self._lock.truncate(0)
        holder = {"pid": os.getpid(), "host": socket.gethostname(), "since": _now()}
        self._lock.write(json.dumps(holder) + "\n")
        self._lock.flush()
        return held

    def _is_free(self) -> bool:
        """Whether the lock is ours now; who only looks at it holds it for a moment."""
        for attempt in range(5):
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                time.sleep(0.02 * attempt)
            else:
                return True
        return False

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, KeyboardInterrupt | SystemExit):
            self._state = INTERRUPTED
        elif error is not None:
            self._state, self._message = FAILED, _words(error)
        with contextlib.suppress(OSError):
            self._write_run()
        for end in (self._close_log, lambda: self._lock.truncate(0), self._lock.close):
            with contextlib.suppress(OSError):
                end()

    def _close_log(self) -> None:
        """Close it; what a full disk did not take was said when it was written."""
        if self._log is not None:
            self._log.close()

    def begin(self, step: int) -> None:
        """Note the run, which goes on after a step, or begins at 0.

        Raises:
            RunError: SH0609, the folder cannot be written.
        """
        try:
            (self.folder / SPEC).write_text(self._spec, encoding="utf-8")
            self._about |= _beginning(self.folder, step)
            self._state = RUNNING
            self._write_run()
            if step:
                _without_cut_line(self.folder / LOG)
            self._log = (self.folder / LOG).open("a" if step else "w", encoding="utf-8")
            if step:
                self._write({"event": "resumed", "step": step, "time": _now()})
        except OSError as error:
            raise cannot_write(self.folder, error) from error

    def after_step(self, trainer: Trainer, record: Record) -> None:
        """Write the record of a step, at once."""
        try:
            self._write({**record.as_json(), "time": _now()})
        except OSError as error:
            raise cannot_write(self.folder / LOG, error) from error

    def end(self, state: str = ENDED, message: str = "") -> None:
        """Say how the run ended."""
        self._state, self._message = state, message

    def _write(self, line: Mapping[str, object]) -> None:
        assert self._log is not None, "a run is logged after it began"
        self._log.write(json.dumps(line, allow_nan=False) + "\n")
        self._log.flush()

    def _write_run(self) -> None:
        if "began" not in self._about:
            return
        found = {**self._about, "state": self._state}
        if self._state != RUNNING:
            found |= {"ended": _now(), "message": self._message}
        _replace_run(self.folder, found)


def _without_cut_line(log: Path) -> None:
    """Remove a last line that a full disk or a death has cut off: it is no record."""
    if not log.is_file():
        return
    with log.open("rb") as file:
        whole_bytes = sum(len(line) for line in file if line.endswith(b"\n"))
    os.truncate(log, whole_bytes)


def _beginning(folder: Path, step: int) -> dict[str, object]:
    """When a run began, and when and after which steps it was resumed, this time included."""
    before = about_in(folder) if step else {}
    if "began" not in before:
        return {"began": _now()}
    resumed = before.get("resumed", [])
    resumed = resumed if isinstance(resumed, list) else []
    return {"began": before["began"], "resumed": [*resumed, {"step": step, "time": _now()}]}


def about_in(folder: Path) -> dict[str, object]:
    """What `run.json` of a folder says; nothing where there is none, or it cannot be read."""
    try:
        found = json.loads((folder / RUN).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def note_failure(folder: Path, message: str, since: datetime) -> None:
    """Write why a run ended, as who watched its processes knows it.

    Rank 0 knows only that it lost another one, and nothing if it was killed itself.

    Args:
        since: when its processes were started; the run that began before was another one.
    """
    with contextlib.suppress(OSError, ValueError, KeyError):
        found = about_in(folder)
        if datetime.fromisoformat(_begun(found)) >= since:
            killed = found["state"] == RUNNING and _was_held(folder)
            found["state"] = KILLED if killed else FAILED
            _replace_run(folder, {"ended": _now(), **found, "message": message})


def _was_held(folder: Path) -> bool:
    """Whether the last process of a run did not give the folder back, as one does that ends."""
    return bool((folder / LOCK).read_text(encoding="utf-8").strip())


def _begun(about: Mapping[str, object]) -> str:
    """When the processes of a run began that was the last to begin or to be resumed."""
    resumed = about.get("resumed")
    return str(resumed[-1]["time"] if isinstance(resumed, list) else about["began"])


def is_held(folder: Path) -> bool:
    """Whether a process of this machine runs in the folder."""
    try:
        with (folder / LOCK).open("r") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


def records_of(folder: Path) -> list[dict[str, object]]:
    """The lines of a run's steps, of each step the last; a line that is cut off is left out.

    A run that went back takes its later steps again, even if the line that says so is cut off.
    """
    found: list[tuple[int, dict[str, object]]] = []
    for line in _lines(folder / LOG):
        step = line.get("step")
        if not isinstance(step, int):
            continue
        resumed = line.get("event") == "resumed"
        while found and found[-1][0] >= step + resumed:
            found.pop()
        if not resumed:
            found.append((step, line))
    return [line for _, line in found]


def _lines(path: Path) -> Iterator[dict[str, object]]:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError:
        return
    for line in text.splitlines():
        with contextlib.suppress(ValueError):
            found = json.loads(line)
            if isinstance(found, dict):
                yield found


def _holder(folder: Path) -> str:
    with contextlib.suppress(OSError, ValueError, KeyError):
        held = json.loads((folder / LOCK).read_text())
        return f", by process {held['pid']} on {held['host']} since {held['since']}"
    return ""


def _replace_run(folder: Path, about: Mapping[str, object]) -> None:
    """Write the file beside, and rename it, so that a reader finds a whole one."""
    draft = folder / f".{RUN}"
    try:
        draft.write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
        draft.replace(folder / RUN)
    except OSError:
        with contextlib.suppress(OSError):
            draft.unlink()
        raise


def _words(error: BaseException) -> str:
    """An error in words; one of a library, that a peer is gone, says only in which call."""
    report = explain(0, error)
    return report.message if report.kind in ("peer", "stuck") else str(error)


def _now() -> str:
    return datetime.now().astimezone().isoformat(timespec="milliseconds")
