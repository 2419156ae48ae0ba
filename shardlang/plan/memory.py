"""Bytes on the fullest device: what is certain, and an estimate of the activations."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import fx

from shardlang.cost.memory import kept_bytes, leaf_bytes, optimizer_states
from shardlang.ir.leaf import LeafKind
from shardlang.ir.program import LocalProgram
from shardlang.plan.types import Memory

if TYPE_CHECKING:
    from shardlang.spec.types import OptimizerDecl


def estimate_memory(
    program: LocalProgram,
    flowing: set[fx.Node],
    optimizer: OptimizerDecl | None,
    train: bool = True,
) -> Memory:
    """Bytes on the first device, which holds the largest shard of everything.

    Args:
        flowing: the nodes through which a gradient flows.
        optimizer: as the spec states it; AdamW is assumed where it states none.
    """
    params = [leaf for leaf in program.leaves if leaf.kind is LeafKind.PARAM]
    trained = leaf_bytes(p for p in params if p.trainable) if train else 0
    name = optimizer.name if optimizer is not None else "adamw"
    momentum = optimizer is not None and bool(optimizer.kwargs.get("momentum", 0))
    return Memory(
        params_bytes=leaf_bytes(params),
        buffers_bytes=leaf_bytes(b for b in program.leaves if b.kind is LeafKind.BUFFER),
        gradients_bytes=trained,
        optimizer_bytes=trained * optimizer_states(name, momentum=momentum),
        activations_bytes=kept_bytes(program, flowing),
        optimizer_name=name if optimizer is not None else "adamw (assumed)",
    )
