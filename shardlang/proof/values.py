"""Values for a proof: random and non-trivial, so that no bug hides behind a zero or a one."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from shardlang.capture import Captured, ModelSource, raised_dtype
from shardlang.ir.leaf import Leaf, LeafKind


def generator(seed: int, name: str) -> torch.Generator:
    """A generator for one tensor, the same in every run."""
    return torch.Generator().manual_seed(zlib.crc32(f"{seed}/{name}".encode()))


def random_parameter(name: str, shape: Sequence[int], seed: int) -> Tensor:
    """A float64 parameter: matrices keep the scale of their input, vectors are off zero and one."""
    drawn: Tensor = torch.randn(tuple(shape), generator=generator(seed, name), dtype=torch.float64)
    if len(shape) >= 2:
        fan = math.prod(shape[1:]) if len(shape) > 2 else min(shape)
        return drawn / math.sqrt(max(fan, 1))
    return 0.4 * drawn + (1.0 if name.endswith("weight") else 0.1)


def random_like(dtype: torch.dtype, shape: Sequence[int], chosen: torch.Generator) -> Tensor:
    """Normal numbers of a raised dtype, real or complex."""
    kind = torch.complex128 if dtype.is_complex else torch.float64
    return torch.randn(tuple(shape), generator=chosen, dtype=kind).to(raised_dtype(dtype))


def parameter_value(source: ModelSource, leaf: Leaf, seed: int) -> Tensor:
    """A parameter in its own kind: real, complex, or integers in the range of its first values."""
    if leaf.dtype.is_complex:
        real, imaginary = (
            random_parameter(f"{leaf.name}{part}", leaf.shape, seed) for part in ("", " imaginary")
        )
        return torch.complex(real, imaginary)
    if leaf.dtype.is_floating_point:
        return random_parameter(leaf.name, leaf.shape, seed)
    return _integers(_first_value(source, leaf.name), generator(seed, leaf.name))


def _integers(first: Tensor, chosen: torch.Generator) -> Tensor:
    """Integers between the least and the largest that a tensor holds; its own dtype.

    Where all are equal, 8-bit integers, which index nothing, take the range of their type.
    """
    if not first.numel():
        return first
    low, high = int(first.min()), int(first.max())
    if first.dtype is torch.bool:
        low, high = 0, 1
    elif low == high and first.dtype in (torch.int8, torch.uint8):
        low, high = torch.iinfo(first.dtype).min, torch.iinfo(first.dtype).max
    return torch.randint(low, high + 1, first.shape, generator=chosen).to(first.dtype)


def _first_value(source: ModelSource, name: str) -> Tensor:
    """The value that a parameter or buffer has after the model's constructor."""
    module = source.deferred.module
    held: dict[str, Tensor] = dict(module.named_parameters(remove_duplicate=False))
    held.update(module.named_buffers(remove_duplicate=False))
    return source.deferred.value(held[name])


def buffer_value(source: ModelSource, name: str, seed: int) -> Tensor:
    """A buffer's first value; real and complex ones a little off, so that they matter."""
    value, chosen = _first_value(source, name), generator(seed, name)
    if value.is_complex():
        drawn = torch.rand(value.shape, generator=chosen, dtype=torch.complex128)
        return value.to(torch.complex128) + 0.1 * drawn
    return _moved(value.double(), chosen) if value.is_floating_point() else value


def _moved(value: Tensor, chosen: torch.Generator) -> Tensor:
    """Real numbers moved by up to a tenth of the way to others between the least and the largest.

    A model may take the root of what lies between zero and one. Where all are equal, up to a tenth
    is taken away of each, and added to zeros. Infinities stay.
    """
    share = 0.1 * torch.rand(value.shape, generator=chosen, dtype=value.dtype)
    finite = value[value.isfinite()]
    if not finite.numel() or finite.min() == finite.max():
        return torch.where(value == 0, share, value * (1 - share))
    between = torch.rand(value.shape, generator=chosen, dtype=value.dtype)
    others = finite.min() * (1 - between) + finite.max() * between
    return torch.where(value.isfinite(), (1 - share) * value + share * others, value)


def all_values(
    captured: Captured, source: ModelSource, inputs: Mapping[str, Tensor], seed: int
) -> dict[str, Tensor]:
    """A global value for every leaf, real ones in float64 and complex ones in complex128."""
    values: dict[str, Tensor] = {}
    for leaf in captured.leaves:
        if leaf.kind is LeafKind.PARAM:
            value = parameter_value(source, leaf, seed)
        elif leaf.kind is LeafKind.INPUT:
            value = inputs[leaf.name]
        elif leaf.name in captured.constants:
            value = captured.constants[leaf.name]
        else:
            value = buffer_value(source, leaf.name, seed)
        values[leaf.name] = value.to(raised_dtype(leaf.dtype))
    return values


def cotangents(results: Mapping[str, Tensor], seed: int) -> dict[str, Tensor]:
    """Random fixed cotangents for results that carry a gradient."""
    return {
        name: random_like(value.dtype, value.shape, generator(seed, f"cotangent {name}"))
        for name, value in results.items()
        if value.requires_grad
    }
