"""Ops of our own, `torch.ops.shardlang.*`: defined by a schema, implemented by a function."""

from __future__ import annotations

from collections.abc import Callable

import torch

from shardlang.ir.compat import OpOverload

_library = torch.library.Library("shardlang", "FRAGMENT")  # type: ignore[no-untyped-call]


def define(schema: str, *, draws: bool = False) -> None:
    """Define an op by its schema; one that `draws` takes random numbers."""
    tags = (torch.Tag.nondeterministic_seeded,) if draws else ()
    _library.define(schema, tags=tags)  # type: ignore[no-untyped-call]


def implement(
    name: str, run: Callable[..., object], fake: Callable[..., object] | None = None
) -> OpOverload:
    """Implement a defined op, `name` or `name.overload`, for all devices.

    `fake` computes the result where tensors hold no data; without it, `run` does.
    """
    _library.impl(name, run, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
    if fake is not None:
        torch.library.register_fake(f"shardlang::{name}", fake, lib=_library)
    packet, _, overload = name.partition(".")
    found: OpOverload = getattr(getattr(torch.ops.shardlang, packet), overload or "default")
    return found
