"""The aten calls that a sample of an op makes, with the tensors that they were given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.node import Argument, Target

from shardlang.ir.arguments import Args, Kwargs
from shardlang.ir.compat import OpOverload
from shardlang.rules.schema import Operator

aten = torch.ops.aten

UNSET = {
    aten.empty, aten.empty_like, aten.empty_permuted, aten.empty_strided, aten.new_empty,
    aten.new_empty_strided,
}  # fmt: skip
"""Ops whose results hold no particular numbers."""


@dataclass(frozen=True, eq=False, slots=True)
class AtenCall:
    """One aten call on concrete tensors."""

    target: Operator
    args: Args
    kwargs: Kwargs

    @property
    def key(self) -> str:
        """Equal for calls that differ in the tensors' values alone."""
        return repr((str(self.target), pytree.tree_map(_described, (self.args, self.kwargs))))

    @property
    def tensors(self) -> list[Tensor]:
        """The tensors among the arguments."""
        return [x for x in pytree.tree_leaves((self.args, self.kwargs)) if isinstance(x, Tensor)]

    @property
    def is_unset(self) -> bool:
        """Whether its results hold no particular numbers."""
        return getattr(self.target, "overloadpacket", None) in UNSET

    def run(self, tensors: list[Tensor]) -> object:
        """The call on other tensors."""
        given = iter(tensors)
        args, kwargs = pytree.tree_map_only(Tensor, lambda _: next(given), (self.args, self.kwargs))
        return self.target(*args, **kwargs)

    def __str__(self) -> str:
        args = ", ".join(str(pytree.tree_map(_described, a)) for a in self.args)
        kwargs = "".join(f", {k}={pytree.tree_map(_described, v)}" for k, v in self.kwargs.items())
        return f"{self.target}({args}{kwargs})"


def _described(value: object) -> object:
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    return value


def calls_of(function: Callable[..., object], args: Args, kwargs: Kwargs) -> list[AtenCall]:
    """The aten calls of a function, as export sees them: composite ops stay whole.

    Raises:
        RuntimeError: the function reads tensor values and cannot be traced.
    """
    leaves, spec = pytree.tree_flatten((args, kwargs))
    places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]

    def flat(*tensors: Tensor) -> object:
        merged = list(leaves)
        for place, tensor in zip(places, tensors, strict=True):
            merged[place] = tensor
        inner_args, inner_kwargs = pytree.tree_unflatten(merged, spec)
        return function(*inner_args, **inner_kwargs)

    tensors = [leaves[i].detach() for i in places]
    module = make_fx(flat, pre_dispatch=True, tracing_mode="real")(*[t.clone() for t in tensors])
    recorder = _Recorder(module)
    recorder.run(*[t.clone() for t in tensors])
    return recorder.calls


class _Recorder(fx.Interpreter):
    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.calls: list[AtenCall] = []

    def call_function(
        self, target: Target, args: tuple[Argument, ...], kwargs: dict[str, Argument]
    ) -> object:
        if isinstance(target, OpOverload):
            kept = pytree.tree_map_only(Tensor, lambda t: t.detach().clone(), (args, kwargs))
            self.calls.append(AtenCall(target, *kept))
        return super().call_function(target, args, kwargs)
