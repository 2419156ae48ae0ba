"""Optimizers on local shards, and the one thing that is not local: the norm of all gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn

from shardlang.ir.leaf import LeafKind
from shardlang.runtime.errors import RunError
from shardlang.runtime.module import ShardedModule, held
from shardlang.runtime.transport import Wire
from shardlang.runtime.watch import named
from shardlang.runtime.whole import held_shard

_KINDS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
}

DEFAULT = ("adamw", {"lr": 1e-3})
"""What a spec without an `optimizer` statement trains with."""


def make_optimizer(
    params: Iterable[nn.Parameter], name: str, arguments: Mapping[str, object]
) -> torch.optim.Optimizer:
    """The optimizer that a spec names; `clip` among its arguments is not the optimizer's.

    Raises:
        RunError: SH0606, an unknown optimizer or argument.
    """
    if name not in _KINDS:
        raise RunError("SH0606", f"unknown optimizer `{name}`", help=f"write one of {list(_KINDS)}")
    given = {key: value for key, value in arguments.items() if key != "clip"}
    trained = [param for param in params if param.requires_grad]
    try:
        return _KINDS[name](trained, fused=_can_fuse(trained), **given)
    except (TypeError, ValueError) as error:
        raise RunError(
            "SH0606",
            f"`{name}` cannot be made: {error}",
            help="change the arguments of the `optimizer` statement",
        ) from error


def _can_fuse(params: list[nn.Parameter]) -> bool:
    """Whether torch has one kernel for all of an update."""
    return all(p.is_floating_point() and p.device.type in ("cpu", "cuda") for p in params)


class GradNorm:
    """The 2-norm of all gradients of a sharded module, every element counted once.

    A shard counts on the first device along the axes that do not split it; one all-reduce of a
    single number adds up the rest.
    """

    def __init__(self, module: ShardedModule) -> None:
        groups = held(module).groups
        self._transport = Wire(groups.everyone())
        self._device = groups.device
        self._counted: list[Tensor] = []
        for leaf, tensor in held(module).tensors():
            split = set(leaf.layout.sharded)
            rest = (axis for axis in groups.mesh.axes if axis not in split)
            if leaf.kind is LeafKind.PARAM and all(groups.coord[axis.name] == 0 for axis in rest):
                self._counted.append(tensor)

    @torch.no_grad()
    def __call__(self) -> Tensor:
        """The norm, the same on every device. Collective."""
        squares = squared_norm(self._counted, self._device)
        return named("norm of the gradients", self._transport.all_reduce, squares).sqrt()


def squared_norm(params: Iterable[Tensor], device: torch.device) -> Tensor:
    """The sum of squares of all gradients, in float64."""
    grads = [held_shard(param.grad) for param in params if param.grad is not None]
    if not grads:
        return torch.zeros((), dtype=torch.float64, device=device)
    return torch.nn.utils.get_total_norm(grads).double().square()


def clip(params: Iterable[Tensor], norm: Tensor, largest: float) -> None:
    """Scale all gradients so that their norm is at most `largest`."""
    scaled = [param for param in params if param.grad is not None]
    torch.nn.utils.clip_grads_with_norm_(scaled, largest, norm.float(), foreach=True)
