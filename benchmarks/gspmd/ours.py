"""What our programs send, and what JAX needs to be given the same ones.

    python benchmarks/gspmd/ours.py FOLDER [NAME...]

For every spec of `programs/`, FOLDER gets `NAME.json`: the mesh, the layouts of parameters and
inputs, those of outputs and inner values that the spec states, the bytes that the plan counts, and
the loss of the plain model; and `NAME.npz`: the weights and inputs that this loss is of.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import shardlang
from shardlang.capture import load_plain
from shardlang.compiler.driver import Compiled
from shardlang.ir.dim_layout import DimLayout
from shardlang.ir.leaf import Leaf, LeafKind
from shardlang.ir.records import Stated
from shardlang.plan import Plan, plan_of
from shardlang.plan.moments import Phase
from shardlang.plan.types import OPS
from shardlang.plan.values import value_name

PROGRAMS = Path(__file__).parent / "programs"
Entry = list[str] | None
"""The axes of a dim, major to minor; None where propagation decides."""


def axes_of(dim: DimLayout) -> list[str]:
    """The axes of a dim of an argument: JAX has even columns where we have uneven units.

    Raises:
        ValueError: the dim has several blocks, or a size that its axes do not divide.
    """
    axes = dim.axes
    if len(dim.blocks) > 1 or dim.size % math.prod(axis.size for axis in axes):
        raise ValueError(f"no argument of a JAX program lies as {dim}")
    return [axis.name for axis in axes]


def stated(found: Mapping[str, Stated]) -> dict[str, list[Entry]]:
    """Stated layouts by name."""
    return {
        name: [
            None if place in one.open else [axis.name for axis in dim.axes]
            for place, dim in enumerate(one.layout.dims)
        ]
        for name, one in found.items()
    }


def leaves(compiled: Compiled, kind: LeafKind) -> Iterator[Leaf]:
    """The parameters or the inputs."""
    return (leaf for leaf in compiled.program.leaves if leaf.kind is kind)


def at_rest(found: Iterable[Leaf]) -> dict[str, list[list[str]]]:
    """How leaves lie at rest.

    Raises:
        ValueError: one lies as no argument of a JAX program can.
    """
    return {leaf.name: [axes_of(dim) for dim in leaf.layout.dims] for leaf in found}


def param_layouts(compiled: Compiled) -> list[dict[str, list[list[str]]]]:
    """The layouts of all parameters: those not stated are whole, or where propagation puts them.

    JAX is given either, and the fewer bytes of the two count. Where it cannot have what propagation
    says, it has only the first.
    """
    params = list(leaves(compiled, LeafKind.PARAM))
    said = {*compiled.binding.params, *compiled.binding.storage}
    whole: dict[str, list[list[str]]] = {p.name: [[] for _ in p.layout.dims] for p in params}
    found = [whole | at_rest(p for p in params if p.name in said)]
    with suppress(ValueError):
        propagated = at_rest(params)
        found += [propagated] if propagated != found[0] else []
    return found


def sent(plan: Plan) -> dict[str, int]:
    """Bytes of forward and backward, by collective."""
    rows = [row for row in plan.collectives if row.phase is not Phase.UPDATE]
    return {op: sum(row.bytes for row in rows if row.op == op) for op in OPS}


def draw(compiled: Compiled) -> dict[str, Tensor]:
    """Random inputs; integers below the stated bound."""
    made = torch.Generator().manual_seed(1)
    found: dict[str, Tensor] = {}
    for spec in compiled.inputs:
        if spec.dtype.is_floating_point:
            found[spec.name] = torch.randn(spec.shape, generator=made)
        else:
            found[spec.name] = torch.randint(0, spec.below or 2, spec.shape, generator=made)
    return found


def document(name: str, compiled: Compiled, loss: Tensor) -> dict[str, object]:
    """All that the JAX side reads beside the numbers."""
    spec, statements = compiled.spec, compiled.statements
    return {
        "name": name,
        "mesh": {axis.name: axis.size for axis in statements.mesh.axes},
        "file": spec.model.path.stem,
        "function": spec.model.function,
        "arguments": spec.model.kwargs,
        "params": param_layouts(compiled),
        "inputs": at_rest(leaves(compiled, LeafKind.INPUT)),
        "outputs": stated(statements.outputs),
        "values": stated({value_name(key): one for key, one in statements.values.items()}),
        "sent": sent(plan_of(compiled)),
        "loss": loss.item(),
    }


def write(path: Path, folder: Path) -> None:
    """Compile one spec, and write what it sends and what the plain model computes."""
    compiled = shardlang.compile(path).compiled
    model = load_plain(compiled.source, 0)
    inputs = draw(compiled)
    arrays = {name: tensor.detach().numpy().copy() for name, tensor in model.named_parameters()}
    loss = model(**inputs)["loss"]
    np.savez(folder / f"{path.stem}.npz", **arrays, **{k: x.numpy() for k, x in inputs.items()})
    found = document(path.stem, compiled, loss)
    (folder / f"{path.stem}.json").write_text(json.dumps(found, indent=1) + "\n")


def main() -> None:
    """Write all programs, or those that are named."""
    folder, *names = sys.argv[1:]
    for path in sorted(PROGRAMS.glob("*.shard")):
        if not names or path.stem in names:
            write(path, Path(folder))


if __name__ == "__main__":
    main()
