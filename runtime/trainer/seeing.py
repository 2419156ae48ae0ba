"""Other ways to look at a run: scalars for TensorBoard, and one step's trace for Perfetto."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from torch.profiler import ProfilerActivity, profile

from shardlang.runtime.errors import RunError
from shardlang.runtime.folder import cannot_write
from shardlang.runtime.trainer.records import Record
from shardlang.runtime.trainer.trainer import Trainer
from shardlang.runtime.watch import WATCH

SCALARS = (
    "loss", "grad_norm", "lr", "step_s", "tokens_per_s", "mfu", "exposed_s", "peak_bytes",
    "eval_loss",
)  # fmt: skip
"""What of a record is a curve."""


class Scalars(Protocol):
    """A writer of TensorBoard."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None: ...

    def flush(self) -> None: ...


class TensorBoard:
    """The scalars of a run, in files that TensorBoard reads."""

    def __init__(self, folder: Path, step: int) -> None:
        """Begin after a step; what was written of later ones is taken back.

        Raises:
            RunError: SH0607, TensorBoard is not installed.
        """
        try:
            module = importlib.import_module("torch.utils.tensorboard")
        except ImportError:
            raise RunError(
                "SH0607",
                "`--tensorboard` needs the tensorboard package",
                help="install it with `pip install shardlang[tensorboard]`",
            ) from None
        self._writer: Scalars = module.SummaryWriter(str(folder), purge_step=step + 1)

    def after_step(self, trainer: Trainer, record: Record) -> None:
        """Write the scalars of a step, at once."""
        for name, value in record.as_json().items():
            if name in SCALARS and isinstance(value, int | float):
                self._writer.add_scalar(name, value, record.step)
        self._writer.flush()


class Profile:
    """The trace of one step on this device, in Chrome's format.

    Collectives stand in it under the names that messages have for them: op, axis and module.
    """

    def __init__(self, folder: Path, step: int, devices: Sequence[str]) -> None:
        """Trace the step of that number.

        Args:
            devices: `cuda` beside the CPU for a run on a GPU.
        """
        self._folder, self._step = folder, step
        kinds = [ProfilerActivity.CPU]
        kinds += [ProfilerActivity.CUDA] if "cuda" in devices else []
        self._profile = profile(activities=kinds)
        self._runs = False

    @property
    def path(self) -> Path:
        """The file of the trace."""
        return self._folder / f"step-{self._step:06d}.json"

    def before_step(self, trainer: Trainer) -> None:
        """Begin, if this is the step."""
        if trainer.step_number + 1 == self._step:
            self._runs = WATCH.is_traced = True
            self._profile.start()

    def after_step(self, trainer: Trainer, record: Record) -> None:
        """Write the trace, if this was the step.

        Raises:
            RunError: SH0609, it cannot be written.
        """
        if not self._runs:
            return
        self._runs = WATCH.is_traced = False
        self._profile.stop()
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._profile.export_chrome_trace(str(self.path))
        except OSError as error:
            raise cannot_write(self.path, error) from error
