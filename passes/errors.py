"""The exception that a pass raises for the person."""

from __future__ import annotations


class PassError(ValueError):
    """A program that a pass cannot handle: a diagnostic code, a message and a place.

    `source` is `file.py:line` in the model's code, or empty.
    """

    def __init__(self, code: str, message: str, *, help: str = "", source: str = "") -> None:
        super().__init__(f"{source}: {message}" if source else message)
        self.code = code
        self.message = message
        self.help = help
        self.source = source
