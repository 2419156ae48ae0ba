"""Values for a proof: random and non-trivial, so that no bug hides behind a zero or a one."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from shardlang.capture import Captured, InputSpec, ModelSource, make_inputs, raised_dtype


def generator(seed: int, name: str) -> torch.Generator:
    """A generator for one tensor, the same in every run."""
    return torch.Generator().manual_seed(zlib.crc32(f"{seed}/{name}".encode()))


def random_parameter(name: str, shape: Sequence[int], seed: int) -> Tensor:
    """A float64 parameter: matrices keep the scale of their input, vectors are off zero and one."""
    drawn: Tensor = torch.randn(tuple(shape), generator=generator(seed, name), dtype=torch.float64)
    if len(shape) >= 2:
        fan = max(drawn[0].numel(), 1) if len(shape) > 2 else min(shape)
        return drawn / math.sqrt(max(fan, 1))
    return 0.4 * drawn + (1.0 if name.endswith("weight") else 0.1)


def buffer_value(source: ModelSource, name: str, seed: int) -> Tensor:
    """A buffer's first value; floating ones a little off, so that they matter."""
    buffers = dict(source.deferred.module.named_buffers(remove_duplicate=False))
    value = source.deferred.value(buffers[name])
    if value.is_floating_point():
        noise = torch.rand(value.shape, generator=generator(seed, name), dtype=torch.float64)
        return value.double() + 0.1 * noise
    return value


def all_values(
    captured: Captured, source: ModelSource, specs: Sequence[InputSpec], seed: int
) -> dict[str, Tensor]:
    """A global value for every leaf, floating ones in float64."""
    values: dict[str, Tensor] = {}
    inputs = make_inputs(source, specs, seed)
    for leaf in captured.leaves:
        if leaf.kind == "param":
            value = random_parameter(leaf.name, leaf.shape, seed)
        elif leaf.kind == "input":
            value = inputs[leaf.name]
        elif leaf.name in captured.constants:
            value = captured.constants[leaf.name]
        else:
            value = buffer_value(source, leaf.name, seed)
        values[leaf.name] = value.to(raised_dtype(value.dtype))
    return values


def cotangents(results: Mapping[str, Tensor], seed: int) -> dict[str, Tensor]:
    """Random fixed cotangents for results that carry a gradient."""
    return {
        name: torch.randn(
            value.shape, generator=generator(seed, f"cotangent {name}"), dtype=torch.float64
        ).to(value.dtype)
        for name, value in results.items()
        if value.requires_grad
    }
