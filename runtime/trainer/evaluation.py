"""The loss on other batches, in eval mode, which leaves the run as it was."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from shardlang.runtime.data import LABELS, Batch
from shardlang.runtime.data.rows import OwnRows
from shardlang.runtime.errors import RunError
from shardlang.runtime.groups import Groups
from shardlang.runtime.sharding import transport_to_all
from shardlang.runtime.tensor import Sharded
from shardlang.runtime.trainer.random_states import RandomStates
from shardlang.runtime.trainer.step import as_batch, count_tokens
from shardlang.runtime.trainer.trainees import Trainee
from shardlang.runtime.watch import named
from shardlang.runtime.whole import held_shard

LEFT_OUT = -100
"""The label of a token that no loss counts, in PyTorch."""


Around = Callable[[Iterator[Batch]], Iterator[Batch]]
"""What stands between a stream and the loop; it may end the stream, or read ahead."""


class DroppedError(Exception):
    """An evaluation is dropped, as the run is to end."""


@dataclass(frozen=True, slots=True)
class Evaluating:
    """When to evaluate, and on what.

    Attributes:
        every: after so many steps each.
        count: the batches of an evaluation.
        batches: makes them anew, so that every evaluation sees the same ones.
        labels: the input of which those count that are not left out.
    """

    every: int
    count: int
    batches: Callable[[], Iterable[Batch]]
    labels: str = LABELS


@dataclass(frozen=True, slots=True)
class Evaluated:
    """The mean loss of the tokens that count.

    Attributes:
        tokens: how many they are.
    """

    loss: float
    tokens: int
    seconds: float


def evaluate(trainee: Trainee, on: Evaluating, around: Around = iter) -> Evaluated:
    """The mean of the losses of some batches, each weighted by its tokens that count. Collective.

    Modes, buffers and random generators are afterwards as they were.

    Args:
        around: what stands between the batches and the evaluation.

    Raises:
        DroppedError: `around` says so.
        RunError: SH0605, there are no batches; SH0631, the model returns no loss.
    """
    began = time.perf_counter()
    total, tokens = 0.0, 0
    with torch.no_grad(), unchanged(trainee.module):
        trainee.module.eval()
        for whole in around(itertools.islice(on.batches(), on.count)):
            batch = as_batch(whole)
            loss, weight = trainee.loss(batch), counted(batch, on.labels)
            if loss is None:
                raise RunError(
                    "SH0631",
                    "the model returns no loss, so there is nothing to evaluate",
                    help="name the output that is the loss: `loss NAME`",
                )
            total += loss.item() * weight if weight else 0.0
            tokens += weight
    if not tokens:
        raise RunError(
            "SH0605",
            "an evaluation found no batch with a token that counts",
            help="give batches, with labels that are not all left out",
        )
    return Evaluated(total / tokens, tokens, time.perf_counter() - began)


def counted(batch: Batch, name: str = LABELS) -> int:
    """The labels of a batch that are not left out; all of its tokens, where it has no labels.

    Collective where each device holds its own rows.
    """
    labels = batch.get(name)
    if not isinstance(labels, Tensor) or labels.is_floating_point():
        return count_tokens(batch)
    if isinstance(batch, OwnRows):
        held = batch.held[name]
        found = _kept(labels[torch.from_numpy(held.numbers)]).to(held.groups.device)
        return _of_all(found, held.groups, held.devices)
    if not isinstance(labels, Sharded):
        return int(_kept(labels))
    lies = labels.sharding
    shards = math.prod(axis.size for axis in lies.layout.sharded)
    return _of_all(_kept(held_shard(labels)), lies.groups, lies.groups.mesh.devices // shards)


def _kept(labels: Tensor) -> Tensor:
    """How many labels are not left out."""
    return (labels != LEFT_OUT).sum()


def _of_all(found: Tensor, groups: Groups, copies: int) -> int:
    """The count of a whole tensor from those of the shards, each of which some devices hold."""
    return int(named("count of the labels", transport_to_all(groups).all_reduce, found)) // copies


@contextmanager
def unchanged(module: nn.Module) -> Iterator[None]:
    """Leave modes, buffers and random generators behind as they are now."""
    modes = [(part, part.training) for part in module.modules()]
    kept = {name: held_shard(x).clone() for name, x in module.named_buffers()}
    random = RandomStates()
    states = random.state_dict()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode
        with torch.no_grad():
            for name, x in module.named_buffers():
                if not torch.equal(held_shard(x), kept[name]):
                    held_shard(x).copy_(kept[name])
        random.load_state_dict(states)
