"""Which op of the model failed in a run: its place stands on the exception as a note."""

from __future__ import annotations

import linecache
import re
from collections.abc import Callable, Mapping
from typing import Generic, TypeVar

from torch import fx

from shardlang.ir.graph import op_name
from shardlang.ir.node import info

T = TypeVar("T")

_MADE = re.compile(r"\s*(\w+)\s*=")
"""What a line of generated code makes."""

_NOTES = "__notes__"
"""Where Python 3.11 keeps the notes of an exception, and prints them from."""


class AtOp(Generic[T]):
    """The generated code of some nodes; an exception that passes names the one that failed."""

    __slots__ = ("_nodes", "_run")

    def __init__(self, run: Callable[..., T], nodes: Mapping[str, fx.Node]) -> None:
        """Take the code.

        Args:
            nodes: of the program, by the name that the code gives to what they make.
        """
        self._run, self._nodes = run, nodes

    def __call__(self, *args: object) -> T:
        """Run it."""
        try:
            return self._run(*args)
        except Exception as error:
            node = self._nodes.get(self._reached(error))
            if node is not None and not place_of(error):
                vars(error).setdefault(_NOTES, []).append(f"at {_described(node)}")
            raise

    def _reached(self, error: Exception) -> str:
        """What the line makes at which the code stands."""
        frames, code = error.__traceback__, getattr(self._run, "__code__", None)
        while frames is not None and frames.tb_frame.f_code is not code:
            frames = frames.tb_next
        if frames is None:
            return ""
        frame, line = frames.tb_frame, frames.tb_lineno
        made = _MADE.match(linecache.getline(frame.f_code.co_filename, line, frame.f_globals))
        return made[1] if made else ""


def place_of(error: BaseException) -> str:
    """`at embedding in model.embed_tokens (gpt2.py:12)`; empty if no op of a model failed."""
    notes: list[str] = getattr(error, _NOTES, [])
    return next((note for note in notes if note.startswith("at ")), "")


def _described(node: fx.Node) -> str:
    known = info(node)
    direction = "the backward of " if known.backward else ""
    where = f" in {known.module}" if known.module else ""
    line = f" ({known.source})" if known.source else ""
    return f"{direction}{op_name(node.target)}{where}{line}"
