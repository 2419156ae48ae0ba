"""Recording which graph node each module's inputs and outputs are.

Hooks on the modules of interest call an operator that does nothing but stay in the traced graph
with the tensor as its operand. Unlike an identity it leaves the traced program as it is, aliasing
included.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator

from torch import fx, nn

from shardlang.capture.nest import tensors
from shardlang.ir.arguments import Args
from shardlang.ir.own_ops import define, implement

define("mark(Tensor value, str module, str side, str selector) -> ()")
MARK = implement("mark", lambda value, module, side, selector: None)
fx.node.has_side_effect(MARK)


@contextlib.contextmanager
def marking(model: nn.Module, wanted: Callable[[str], bool]) -> Iterator[None]:
    """Mark the inputs and outputs of the modules whose names are wanted, inside the body."""
    handles = []
    for name, module in model.named_modules():
        if wanted(name):
            before = module.register_forward_pre_hook(_mark_inputs(name), with_kwargs=True)
            after = module.register_forward_hook(_mark_outputs(name), with_kwargs=True)
            handles += [before, after]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _mark_inputs(name: str) -> Callable[..., None]:
    """A pre-hook that marks every tensor among the arguments under its parameter's name."""

    def hook(module: nn.Module, args: Args, kwargs: dict[str, object]) -> None:
        for selector, tensor in tensors(_named(module, args) | kwargs):
            MARK(tensor, name, "in", selector)

    return hook


def _mark_outputs(name: str) -> Callable[..., None]:
    """A hook that marks every tensor in the result."""

    def hook(module: nn.Module, args: object, kwargs: object, out: object) -> None:
        for selector, tensor in tensors(out):
            MARK(tensor, name, "out", selector)

    return hook


def _named(module: nn.Module, args: Args) -> dict[str, object]:
    """Positional arguments under the names that forward gives them."""
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(module.forward).parameters.values()
    names = [p.name for p in parameters if p.kind in positional]
    names += [str(i) for i in range(len(names), len(args))]
    return dict(zip(names, args, strict=False))
