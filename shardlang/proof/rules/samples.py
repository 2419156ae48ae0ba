"""The aten calls in the samples of PyTorch's own test suite."""

from __future__ import annotations

import itertools
import random
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch

from shardlang.ir.arguments import Args, Kwargs
from shardlang.ir.compat import OpOverload
from shardlang.proof.rules.calls import AtenCall, calls_of
from shardlang.rules.registry import find
from shardlang.rules.schema import Operator, writes

DTYPES = (torch.float64, torch.int64, torch.bool)

_SEED = 1234
"""That of PyTorch's tests."""

FIRST = 60
"""Among how many samples of an op and a dtype a random one is chosen; some ops have thousands."""


@dataclass(frozen=True, slots=True)
class Skipped:
    """A sample, or an op, that could not be traced."""

    op: str
    reason: str


OpInfo: TypeAlias = Any
"""What PyTorch's tests know of an op; its methods have no types."""

Prepared = tuple[Operator, tuple[Args, Kwargs]]
"""A function, its positional and its named arguments."""


def op_infos() -> dict[str, list[OpInfo]]:
    """PyTorch's op samples by op name."""
    from torch.testing._internal.common_methods_invocations import op_db

    found: dict[str, list[OpInfo]] = {}
    for info in op_db:
        found.setdefault(info.name, []).append(info)
    return found


def samples_of(info: OpInfo, dtypes: tuple[torch.dtype, ...] = DTYPES) -> Iterator[Prepared]:
    """Function and arguments of every sample of one op.

    They come from the function that makes them: `sample_inputs` around it looks at the stack of
    callers for each sample, for tests of PyTorch, which takes longer than most samples.
    """
    supported = info.supported_dtypes("cpu")
    for dtype in dtypes:
        if dtype not in supported:
            continue
        samples = iter(info.sample_inputs_func(info, "cpu", dtype, False))
        while (sample := _next(samples)) is not None:
            yield info.op, ((sample.input, *sample.args), sample.kwargs)


def _next(samples: Iterator[Any]) -> Any:
    """The next sample, which draws the same numbers whatever was drawn before it; None at last."""
    torch.manual_seed(_SEED)
    random.seed(_SEED)
    np.random.seed(_SEED)
    return next(samples, None)


def calls_in(
    info: OpInfo, dtypes: tuple[torch.dtype, ...] = DTYPES
) -> Iterator[AtenCall | Skipped]:
    """The distinct aten calls of an op's samples."""
    seen: set[str] = set()
    for prepared in _guarded(samples_of(info, dtypes)):
        for call in calls_of_sample(info, prepared):
            if isinstance(call, Skipped):
                yield call
            elif call.key not in seen:
                seen.add(call.key)
                yield call


def calls_of_sample(info: OpInfo, prepared: Prepared) -> list[AtenCall] | list[Skipped]:
    """The plain aten calls of one sample, or why it cannot be traced."""
    function, (args, kwargs) = prepared
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return [call for call in calls_of(function, args, kwargs) if _plain(call)]
    except Exception as error:  # a sample that cannot be traced is counted, not proven
        return [Skipped(info.name, f"{type(error).__name__}: {str(error)[:80]}")]


def a_sample(info: OpInfo, chooser: random.Random) -> Prepared | None:
    """A random one of the first `FIRST` samples of an op, of a random dtype; None without any."""
    dtypes = [dtype for dtype in DTYPES if dtype in info.supported_dtypes("cpu")]
    if not dtypes:
        return None
    first = list(itertools.islice(_guarded(samples_of(info, (chooser.choice(dtypes),))), FIRST))
    return chooser.choice(first) if first else None


def _guarded(samples: Iterator[Prepared]) -> Iterator[Prepared]:
    """The samples up to the first that cannot be made on this machine."""
    while True:
        try:
            yield next(samples)
        except StopIteration:
            return
        except (RuntimeError, ImportError, NotImplementedError, AssertionError):
            return


def _plain(call: AtenCall) -> bool:
    """Strided CPU tensors only, and nothing written in place."""
    assert isinstance(call.target, OpOverload), "a recorder keeps calls of ops alone"
    plain = all(x.layout is torch.strided and not x.is_quantized for x in call.tensors)
    return plain and not writes(call.target)


def has_rule(call: AtenCall) -> bool:
    """Whether the called op has a rule."""
    return find(call.target) is not None
