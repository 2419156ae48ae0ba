"""The part of a traceback that the person wrote: their frames, without ours and the libraries'."""

from __future__ import annotations

import sysconfig
import traceback
from collections.abc import Iterator
from pathlib import Path

from shardlang.runtime.at_op import place_of

_OURS = str(Path(__file__).parent.parent) + "/"
_ELSEWHERE = tuple({*map(sysconfig.get_path, ("stdlib", "purelib", "platlib")), "<"})


def users_traceback(error: BaseException) -> str:
    """The error as Python prints it, causes included, with the person's frames alone.

    Empty where none of the frames is the person's own.
    """
    shown = traceback.TracebackException.from_exception(error)
    _tell_once(shown, ())
    chain = list(_chain(shown))
    for link in chain:
        own = [frame for frame in link.stack if is_users(frame.filename)]
        link.stack = traceback.StackSummary.from_list(own)
    if any(link.stack for link in chain):
        return "".join(shown.format()).rstrip()
    return ""


def first_line(error: BaseException) -> str:
    """`ValueError: no more (model.py:7)`, or the op of the model where one failed in a run."""
    text = str(error).strip().splitlines()
    what = f"{type(error).__name__}: {text[0]}" if text else type(error).__name__
    if at := place_of(error):
        return f"{what}, {at}"
    place = users_line(error)
    return f"{what} ({place})" if place else what


def users_line(error: BaseException) -> str:
    """`file.py:line` of the person's last frame, or else of the last one."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if is_users(frame.filename)]
    last = (own or frames)[-1:]
    return "".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in last)


def is_users(file: str) -> bool:
    """Whether a file is neither ours nor of Python or an installed package."""
    return not _is_ours(file) and not file.startswith(_ELSEWHERE)


def _is_ours(file: str) -> bool:
    return file.startswith((_OURS, "<eval_with_key>"))


def _tell_once(link: traceback.TracebackException | None, told: tuple[str, ...]) -> None:
    """Forget an earlier try that failed alike: models are built in several ways."""
    if link is None:
        return
    told = (*told, "".join(link.format_exception_only()))
    if link.__context__ and "".join(link.__context__.format_exception_only()) in told:
        link.__context__ = None
    _tell_once(link.__cause__, told)
    _tell_once(link.__context__, told)


def _chain(shown: traceback.TracebackException) -> Iterator[traceback.TracebackException]:
    """An error with all that it comes from."""
    todo: list[traceback.TracebackException | None] = [shown]
    while todo:
        link = todo.pop()
        if link is not None:
            yield link
            todo += [link.__cause__, link.__context__]
