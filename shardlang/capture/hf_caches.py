"""Key-value caches as the models of transformers make them, and what a call may pass as one."""

from __future__ import annotations

from collections.abc import Mapping

from shardlang.capture.errors import CaptureError


def check_no_past(given: Mapping[str, object]) -> None:
    """Raise SH0353 for a call that says that it has no past, and not whether it keeps a cache.

    The plain model keeps one then, as its configuration says; a program does not.
    """
    if given.get("past_key_values", "") is None and given.get("use_cache") is None:
        raise CaptureError(
            "SH0353",
            "the call passes `past_key_values=None` without `use_cache`, and a call that is given"
            " no cache keeps none: the past would be forgotten",
            help="pass `use_cache=True` in every call whose cache is wanted; where none is, pass"
            " `use_cache=False` or leave `past_key_values` out",
        )
