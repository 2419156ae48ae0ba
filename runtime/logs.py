"""Where a job keeps what its ranks print and report."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from pathlib import Path
from types import TracebackType

from shardlang.runtime.errors import RunError


class Logs:
    """The folders of a job; a context manager.

    Attributes:
        folder: `<rank>.log` and, of a rank that failed, `<rank>.traceback`. One for temporary files
            stays only where `keep` was called.
        reports: what the ranks tell their supervisor; always removed.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._given = folder
        self._kept = False

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

    def keep(self) -> None:
        """Leave the logs for the person to read, with the tracebacks beside them."""
        self._kept = True
        for path in self.reports.glob("*.traceback"):
            with contextlib.suppress(OSError):
                shutil.copy(path, self.folder)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        shutil.rmtree(self.reports, ignore_errors=True)
        if not self._kept and self._given is None:
            shutil.rmtree(self.folder, ignore_errors=True)
