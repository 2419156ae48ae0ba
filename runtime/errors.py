"""The exceptions of a run, with the codes that the command line reports."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

CODES: dict[str, str] = {
    "SH0601": "the number of processes differs from the mesh",
    "SH0602": "the ranks hold different programs",
    "SH0603": "a rank failed",
    "SH0604": "a rank is stuck in a collective",
    "SH0605": "the data does not fit the model's inputs",
    "SH0606": "the optimizer or its arguments are unknown",
    "SH0607": "the device is not available",
    "SH0608": "a checkpoint does not fit the model",
    "SH0609": "the result cannot be saved",
    "SH0610": "the nodes cannot meet at the endpoint",
    "SH0611": "devices that hold the same differ",
    "SH0612": "the ranks are given different batches or calls",
    "SH0613": "a call that no program can answer",
    "SH0614": "an input holds a number that the model does not take",
    "SH0620": "a write would not reach the tensor",
    "SH0621": "torch cannot move, cut or share the tensor so",
    "SH0622": "a pickled shard is another device's",
    "SH0623": "a sharded module cannot change so",
    "SH0630": "the loss is not finite",
    "SH0631": "nothing can be trained",
    "SH0632": "the run and its reference differ",
    "SH0641": "a parameter or buffer changed between a forward and its backward",
    "SH0646": "the learning rate ends before the run",
    "SH0651": "the data cannot be read",
    "SH0652": "the tokens are of another vocabulary",
    "SH0653": "the data changed since the checkpoint",
    "SH0661": "a checkpoint cannot be read",
    "SH0662": "a checkpoint cannot be written",
    "SH0663": "a checkpoint cannot be made",
    "SH0664": "the run has no folder of its own",
    "SH0665": "the checkpoint is another run's",
    "SH0666": "a step needs more memory than is free",
}
"""Every code of this stage, with what it says."""


class RunError(ValueError):
    """A run that cannot go on, for a reason that the person can act on.

    Attributes: `code` (a key of `CODES`), `message`, `help` (how to fix it, may be empty) and
    `notes` (more about it, such as the person's own traceback), and `about`: the statement of the
    spec that it is about, by its first word, or empty.
    """

    def __init__(
        self,
        code: str,
        message: str,
        *,
        help: str = "",
        notes: Sequence[str] = (),
        about: str = "",
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.help = help
        self.notes = tuple(notes)
        self.about = about


@contextmanager
def concerning(statement: str) -> Iterator[None]:
    """Let an error that says of no statement that it is about it be about this one."""
    try:
        yield
    except RunError as error:
        error.about = error.about or statement
        raise
