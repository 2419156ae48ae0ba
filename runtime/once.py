"""Steps are differentiated once: their backwards move tensors without a record of it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TypeVar

import torch

from shardlang.runtime.errors import RunError

F = TypeVar("F", bound=Callable[..., object])


def once(backward: F) -> F:
    """A `backward` that refuses to be differentiated itself (`create_graph=True`).

    Raises:
        RunError: SH0613, when it is called so.
    """

    @functools.wraps(backward)
    def checked(*args: object) -> object:
        if torch.is_grad_enabled():
            raise RunError(
                "SH0613",
                "a gradient of the sharded model is to be differentiated again (`create_graph=True`"
                "), and its backward is a program without one",
                help="write a penalty on gradients with the plain model, or without `create_graph`",
            )
        return backward(*args)

    return checked  # type: ignore[return-value]
