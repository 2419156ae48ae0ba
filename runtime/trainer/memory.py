"""The most memory that this process takes at once within a step."""

from __future__ import annotations

import re
import resource
from pathlib import Path

import torch

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
"""Where Linux says the most that was resident, and where it is told to begin anew (proc(5))."""

_MOST = re.compile(rb"VmHWM:\s+(\d+) kB")


class StepMemory:
    """The peak of one step after the other: of the GPU, or what is resident of the process.

    On a GPU the peak of torch's own statistics begins anew with every step. Where the system has no
    peak that begins anew, it is that of the process so far.
    """

    def __init__(self, on_gpu: bool) -> None:
        """Args: on_gpu: whether the parameters are on a GPU."""
        self._on_gpu = on_gpu

    def begin(self) -> None:
        """A step begins."""
        if self._on_gpu:
            torch.cuda.reset_peak_memory_stats()
            return
        try:
            RESET.write_bytes(b"5")
        except OSError:
            return

    def peak_bytes(self) -> int:
        """The most since the step began."""
        if self._on_gpu:
            return torch.cuda.max_memory_allocated()
        try:
            found = _MOST.search(STATUS.read_bytes())
        except OSError:
            found = None
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss if found is None else found[1]
        return int(most) * 1024
