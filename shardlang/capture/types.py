"""What capture returns: the traced graph and the names of everything that enters and leaves it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import fx

from shardlang.capture.deferred import Deferred
from shardlang.capture.errors import CaptureError
from shardlang.capture.held import Path
from shardlang.capture.nest import Skeleton
from shardlang.capture.state import Remark
from shardlang.ir.leaf import Leaf, Result, ValueKey


@dataclass(slots=True)
class Captured:
    """A traced model.

    `graph` holds functional aten operators only, one placeholder per leaf and one output node with
    a flat tuple, one element per result. Every node's record has `value` (a fake tensor or a
    sequence of them), `module` (the dotted name of the innermost module) and `source`
    (`file.py:line` of the innermost line of model code).

    Invariants:
    - leaves and placeholders correspond one to one, in order;
    - no node changes one of its operands, and no node's value depends on the grad mode;
    - `constants` holds the value of every constant and of every buffer outside the state dict.

    `remarks` are warnings about what the graph does not hold. `held` says where in the model the
    constants stand that its constructor made. `replaced` names the buffers to which the forward
    assigns new tensors, instead of writing into them.
    """

    graph: fx.Graph
    leaves: tuple[Leaf, ...]
    results: tuple[Result, ...]
    values: dict[ValueKey, fx.Node]
    modules: tuple[str, ...]
    constants: dict[str, torch.Tensor]
    output: Skeleton
    forward_names: tuple[str, ...]
    repeats: dict[ValueKey, tuple[fx.Node, ...]] = field(default_factory=dict)
    remarks: tuple[Remark, ...] = ()
    held: Mapping[str, Path] = field(default_factory=dict)
    replaced: frozenset[str] = frozenset()

    def constant_values(self, deferred: Deferred, seed: int) -> dict[str, torch.Tensor]:
        """The constants as the model's constructor makes them under a seed."""
        places = dict(self.held)
        drawn = dict(deferred.held(seed, set(places.values()))) if places else {}
        made = {name: drawn[path] for name, path in places.items() if path in drawn}
        return {**self.constants, **made}

    def leaf(self, name: str) -> Leaf:
        """The leaf of that name or alias."""
        for leaf in self.leaves:
            if name == leaf.name or name in leaf.aliases:
                return leaf
        raise KeyError(name)

    def selectors(self, module: str, side: str) -> tuple[str, ...]:
        """The selectors that `module` offers on `side`, in order of appearance."""
        return tuple(key[2] for key in self.values if key[:2] == (module, side))

    def value(self, module: str, side: str, selector: str = "") -> fx.Node:
        """The node of a module's input or output.

        Raises `CaptureError` SH0360 if there is none, or several and no selector chooses.
        """
        choices = self.selectors(module, side)
        if selector in choices:
            return self.values[module, side, selector]
        if not selector and len(choices) == 1:
            return self.values[module, side, choices[0]]
        raise _no_value(module, side, selector, choices)

    def rebuild_output(self, values: Sequence[object]) -> object:
        """The model's own output structure around the values of its `output` results."""
        return self.output.rebuild(list(values))


def _no_value(module: str, side: str, selector: str, choices: tuple[str, ...]) -> CaptureError:
    """The error for a selector that names no tensor."""
    what = f"`{module}`.{side}" + (f".{selector}" if selector else "")
    if not choices:
        known = "`mark` it in `capture`, or choose a module that runs and deals with tensors"
        return CaptureError("SH0360", f"{what} holds no tensor", help=known)
    listed = ", ".join(f"`.{side}.{choice}`" for choice in choices)
    reason = "does not exist" if selector else "is several tensors"
    return CaptureError("SH0360", f"{what} {reason}", help=f"choose one of {listed}")
