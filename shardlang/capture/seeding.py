"""Seeds that a forward sets: a trace does not hold them, so they are refused."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from unittest import mock

import torch

from shardlang.capture.errors import CaptureError, is_model_file


@contextlib.contextmanager
def refuse_seeding() -> Iterator[None]:
    """Raise SH0358 inside the body where the model's own code seeds the generator or forks it."""
    with contextlib.ExitStack() as stack:
        for owner, name in (
            (torch, "manual_seed"), (torch.random, "manual_seed"), (torch, "set_rng_state"),
            (torch.random, "set_rng_state"), (torch.random, "fork_rng"),
        ):  # fmt: skip
            stack.enter_context(mock.patch.object(owner, name, _refusing(getattr(owner, name))))
        yield


def _refusing(call: Callable[..., object]) -> Callable[..., object]:
    def checked(*args: object, **kwargs: object) -> object:
        if not is_model_file(sys._getframe(1).f_code.co_filename):
            return call(*args, **kwargs)
        raise CaptureError(
            "SH0358",
            "the forward seeds the random generator, which the traced program does not",
            help="seed in the training loop; what must be the same in every step is a buffer",
        )

    return checked
