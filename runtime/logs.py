"""Where a job keeps what its ranks print and report."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from pathlib import Path
from types import TracebackType

from shardlang.runtime.errors import RunError

_SHOWN = 12
"""Lines of a log that a message shows."""


class Logs:
    """The folders of a job; a context manager.

    Attributes:
        folder: `<rank>.log` and, of a rank that failed, `<rank>.traceback`; the given one, which
            stays, or one for temporary files, which does not.
        reports: what the ranks tell their supervisor; always removed.
    """

    def __init__(self, folder: Path | None = None, after_failure: Path | None = None) -> None:
        """Without a `folder`, `keep` moves the logs to `after_failure`, if that is given."""
        self._given, self._after_failure = folder, after_failure

    def __enter__(self) -> Logs:
        try:
            self.reports = Path(tempfile.mkdtemp(prefix="shardlang-"))
            if self._given is not None:
                self._given.mkdir(parents=True, exist_ok=True)
            self.folder = self._given or Path(tempfile.mkdtemp(prefix="shardlang-logs-"))
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise RunError(
                "SH0603",
                f"there is no place for the logs: {reason}",
                help="give a folder with `--log-dir`, and one for temporary files as `TMPDIR`",
            ) from error
        return self

    def keep(self, rank: int, explained: bool) -> str:
        """Leave the logs of a failed job for the person to read; what a message says of them.

        Where no folder is there for them, it is the end of what a rank has said, unless the message
        has `explained` its failure.
        """
        for path in self.reports.glob("*.traceback"):
            with contextlib.suppress(OSError):
                shutil.copy(path, self.folder)
        if self._given is None and self._after_failure is not None:
            with contextlib.suppress(OSError):
                shutil.rmtree(self._after_failure, ignore_errors=True)
                shutil.copytree(self.folder, self._after_failure)
                return f"the logs of the ranks are in {self._after_failure}"
        if self._given is not None:
            return f"the logs of the ranks are in {self._given}"
        return "" if explained else self._end_of(rank)

    def _end_of(self, rank: int) -> str:
        """The last lines of a rank's traceback, or else of what it has printed."""
        for name in (f"{rank}.traceback", f"{rank}.log"):
            with contextlib.suppress(OSError):
                text = (self.folder / name).read_text(errors="replace").rstrip()
                if text:
                    lines = text.splitlines()[-_SHOWN:]
                    return "\n".join([f"the last that rank {rank} has said:", *lines])
        return ""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        shutil.rmtree(self.reports, ignore_errors=True)
        if self._given is None:
            shutil.rmtree(self.folder, ignore_errors=True)
