"""Seeds that a model's own code sets, which neither a trace nor a recorded constructor holds."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from unittest import mock

import torch

from shardlang.capture.errors import CaptureError, is_model_file

_SEEDING = (
    (torch, "manual_seed"), (torch.random, "manual_seed"), (torch, "set_rng_state"),
    (torch.random, "set_rng_state"), (torch.random, "fork_rng"),
)  # fmt: skip


@contextlib.contextmanager
def refuse_seeding() -> Iterator[None]:
    """Raise SH0358 inside the body where the model's own code seeds the generator or forks it."""
    with _guarded(_refusing):
        yield


@contextlib.contextmanager
def unseeded(error: Exception) -> Iterator[None]:
    """Raise an error inside the body where anything seeds the generator or forks it."""

    def raising(_: object) -> Callable[..., object]:
        def seeds(*args: object, **kwargs: object) -> object:
            raise error

        return seeds

    with _guarded(raising):
        yield


@contextlib.contextmanager
def _guarded(guard: Callable[[Callable[..., object]], Callable[..., object]]) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for owner, name in _SEEDING:
            stack.enter_context(mock.patch.object(owner, name, guard(getattr(owner, name))))
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
