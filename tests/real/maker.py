"""The programs of a subject, for batches of every size."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from shardlang.ir.layout import Layout
from shardlang.ir.program import LocalProgram
from shardlang.passes.step.write_step import write_step
from shardlang.passes.step.write_update import write_update
from shardlang.runtime.calls import Argument, Call, Given, Made
from tests.real.subjects import Subject


class Maker:
    """A `runtime.variants.Compiler` of the subject's own graph, raised to float64."""

    def __init__(
        self, subject: Subject, program: LocalProgram, constants: Mapping[str, Tensor]
    ) -> None:
        self._subject, self._program, self._constants = subject, program, constants
        self.model = _tree(program)
        leaves = [leaf for leaf in program.leaves if leaf.kind == "input"]
        given = (
            Given(x.name, x.dtype, x.layout.shape) for x in sorted(leaves, key=lambda x: x.name)
        )
        params = (x for x in program.leaves if x.kind == "param" and x.trainable)
        self.declared = Call(tuple(given), (), frozenset(), frozenset(x.name for x in params))

    def flatten(
        self, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> tuple[dict[str, Tensor], tuple[Argument, ...]]:
        """Tensors alone."""
        return dict(kwargs), ()

    def build_inputs(self, flat: Mapping[str, Any]) -> dict[str, Any]:
        """The names as they are."""
        return dict(flat)

    def check(self, call: Call, strict: bool) -> None:
        """Every call has a program."""

    def make(self, call: Call, inputs: Mapping[str, Layout]) -> Made:
        """The program for a batch of another size."""
        if call == self.declared:
            own = self._subject.captured
            return _made(self._program, own.rebuild_output, self._constants, own.replaced)
        other = self._subject.resized({one.name: one.shape for one in call.inputs})
        captured = other.captured
        return _made(
            other.program(), captured.rebuild_output, captured.constants, captured.replaced
        )

    def modes_after(self, evaluated: frozenset[str], mode: bool) -> frozenset[str]:
        """Modes play no part."""
        return evaluated


def _made(
    program: LocalProgram,
    rebuild: Callable[[Sequence[object]], object],
    constants: Mapping[str, Tensor],
    replaced: frozenset[str],
) -> Made:
    update = functools.partial(write_update, program)
    return Made(program, write_step, update, rebuild, constants, replaced)


def _tree(program: LocalProgram) -> nn.Module:
    """Modules that hold the names of a program's tensors."""
    root = nn.Module()
    for leaf in program.leaves:
        for name in (leaf.name, *leaf.aliases) if leaf.kind in ("param", "buffer") else ():
            *path, last = name.split(".")
            owner = root
            for part in path:
                owner._modules.setdefault(part, nn.Module())
                owner = owner.get_submodule(part)
            owner._buffers[last] = torch.empty(0)
    return root
