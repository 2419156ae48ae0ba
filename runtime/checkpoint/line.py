"""Which checkpoints a run may save: steps go up, and nothing of another run is overwritten."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeGuard

from shardlang.runtime.errors import RunError


def check_kept(keep: object, keep_every: object) -> None:
    """Raise SH0663 if these do not say which checkpoints stay."""
    for name, number in (("keep", keep), ("keep_every", keep_every)):
        if number is not None and not (_is_number(number) and number >= 1):
            raise RunError(
                "SH0663", f"`{name}` is {number!r}", help=f"let `{name}` be a number of 1 or more"
            )
    if keep_every is not None and keep is None:
        raise RunError(
            "SH0663",
            "`keep_every` says what stays beside the last ones, and all stay",
            help="say with `keep` how many of the last ones stay",
        )


def check_step(step: object) -> None:
    """Raise SH0663 if it is no number of steps."""
    if not (_is_number(step) and step >= 0):
        raise RunError(
            "SH0663",
            f"a checkpoint of step {step!r} cannot be saved",
            help="give the number of steps that were taken, an `int`",
        )


def _is_number(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def check_line(step: int, last: int | None, there: Sequence[int]) -> None:
    """Raise SH0663 if a step comes before one that this run has saved or that another has.

    Args:
        last: the step that was saved or loaded last.
        there: the steps in the folder.
    """
    if last is not None and step < last:
        raise RunError(
            "SH0663",
            f"step {step} comes before step {last}, which was saved or loaded last",
            help=f"load a step up to {step} first to go on from there",
        )
    later = [one for one in there if one >= step]
    if last is None and later:
        raise RunError(
            "SH0663",
            f"the folder holds step {later[-1]} of another run, and step {step} would follow it",
            help="load one of its steps to go on from there, or choose another folder",
        )
