"""From a compiled spec to a training run: the model on this device, its batches, its results."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from shardlang.capture import load_plain, make_inputs, materialize
from shardlang.capture.nest import tensors
from shardlang.driver import Compiled
from shardlang.ir.pieces import piece_of
from shardlang.resize import Sizes
from shardlang.runtime.data import IDS, Batch, byte_batches
from shardlang.runtime.errors import RunError
from shardlang.runtime.groups import Groups
from shardlang.runtime.module import ShardedModule, held
from shardlang.runtime.optim import DEFAULT
from shardlang.runtime.train import PlainTrainee, Recipe, Record, ShardedTrainee, train


def sharded_module(compiled: Compiled, groups: Groups, seed: int = 0) -> ShardedModule:
    """The sharded model on this device, with its initial or stored weights. Collective.

    No rank ever holds more than one whole tensor beside its own pieces.
    """
    layouts = {leaf.name: leaf.layout for leaf in compiled.program.leaves}

    def mine(name: str, full: Tensor) -> Tensor:
        if name not in layouts:
            return full[:0] if full.dim() else full
        return piece_of(full, layouts[name], groups.coord)

    pieces = materialize(compiled.source, seed, mine)
    constants = compiled.captured.constants
    for name, value in constants.items():
        if name in layouts:
            pieces[name] = piece_of(value, layouts[name], groups.coord)
    return ShardedModule(
        compiled.program, groups, pieces, call=compiled.captured, transient=constants.keys()
    )


def plain_trainee(
    compiled: Compiled, seed: int, device: torch.device | None = None
) -> PlainTrainee:
    """The ordinary model on one process, with the weights that the sharded one starts from."""
    name = compiled.program.loss
    names = compiled.captured.output.names

    def loss_of(module: nn.Module, batch: Batch) -> Tensor | None:
        result = compiled.source.call(module, batch)
        found = dict(zip(names, (tensor for _, tensor in tensors(result)), strict=True))
        return found[name] if name is not None else None

    return PlainTrainee(load_plain(compiled.source, seed), loss_of, device)


def batches(compiled: Compiled, seed: int, data: Path | None = None) -> Iterator[Batch]:
    """Endless whole batches, the same for every mesh.

    From a text file; else from the model's own `batches`; else random ones.

    Raises:
        RunError: SH0605, the data does not fit the model's inputs.
    """
    if data is not None:
        shapes = {spec.name: spec.shape for spec in compiled.inputs}
        return byte_batches(data, shapes, _vocabulary(compiled), seed)
    own = compiled.source.batches(seed)
    return own if own is not None else _random_batches(compiled, seed)


def _random_batches(compiled: Compiled, seed: int) -> Iterator[Batch]:
    step = 0
    while True:
        yield make_inputs(compiled.source, compiled.inputs, seed + step)
        step += 1


def _vocabulary(compiled: Compiled) -> int:
    for spec in compiled.inputs:
        if spec.name == IDS:
            return compiled.source.integer_range(spec)[1]
    return 0


def recipe_of(compiled: Compiled, steps: int, seed: int) -> Recipe:
    """How to train, as the spec's `optimizer` statement says."""
    stated = compiled.spec.optimizer
    name, arguments = (stated.name, stated.kwargs) if stated is not None else DEFAULT
    return Recipe(steps, name, arguments, seed)


Show = Callable[[Iterator[Record]], Iterator[Record]]


@dataclass(slots=True)
class Run:
    """A training run of a compiled spec on this device."""

    compiled: Compiled
    recipe: Recipe
    data: Path | None = None

    def sharded(self, module: ShardedModule, show: Show) -> list[Record]:
        """Train the sharded model. Collective."""
        trainee = ShardedTrainee(module, Sizes(self.compiled, module).module_for)
        return list(show(train(trainee, self._batches(), self.recipe)))

    def reference(self, show: Show) -> list[Record]:
        """Train the ordinary model on this process alone."""
        trainee = plain_trainee(self.compiled, self.recipe.seed)
        return list(show(train(trainee, self._batches(), self.recipe)))

    def _batches(self) -> Iterator[Batch]:
        return batches(self.compiled, self.recipe.seed, self.data)


def summary(run: Run, module: ShardedModule, records: list[Record]) -> dict[str, Any]:
    """What the last line of a run says."""
    mesh = held(module).groups.mesh
    losses = [record.loss for record in records if record.loss is not None]
    return {
        "steps": len(records),
        "first_loss": losses[0] if losses else None,
        "loss": losses[-1] if losses else None,
        "step_s": _median([record.step_s for record in records]),
        "tokens_per_s": _median([record.tokens_per_s for record in records]),
        "mesh": {axis.name: axis.size for axis in mesh.axes},
        "devices": mesh.devices,
        "device": held(module).groups.device.type,
        "parameters": _count(module, whole=True),
        "local_parameters": _count(module, whole=False),
        "optimizer": run.recipe.optimizer,
        "seed": run.recipe.seed,
        "random": run.compiled.spec.random,
        "data": str(run.data) if run.data is not None else None,
    }


def compare(records: list[Record], reference: list[Record]) -> dict[str, Any]:
    """How far the losses of a run lie from those of the reference."""
    losses = [record.loss for record in reference]
    pairs = [
        (a.loss, b.loss)
        for a, b in zip(records, reference, strict=True)
        if a.loss is not None and b.loss is not None
    ]
    return {
        "losses": losses,
        "max_difference": max((abs(a - b) for a, b in pairs), default=0.0),
        "step_s": _median([record.step_s for record in reference]),
    }


def _median(values: list[float]) -> float | None:
    """The median without the first, which pays for warming up."""
    later = values[1:] or values
    return round(statistics.median(later), 6) if later else None


def _count(module: ShardedModule, whole: bool) -> int:
    found = [(leaf, x) for leaf, x in held(module).placements() if leaf.kind == "param"]
    if whole:
        return sum(torch.Size(leaf.layout.shape).numel() for leaf, _ in found)
    return sum(x.numel() for _, x in found)


def save_config(compiled: Compiled, folder: Path) -> None:
    """Write the model's own configuration beside its weights, where it has one.

    Raises:
        RunError: SH0609, the folder cannot be written.
    """
    config: Any = getattr(compiled.source.deferred.module, "config", None)
    if not hasattr(config, "save_pretrained"):
        return
    try:
        config.save_pretrained(folder)
    except OSError as error:
        raise RunError(
            "SH0609", f"cannot write `{folder}`: {error.strerror}", help="choose another folder"
        ) from error
