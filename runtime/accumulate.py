"""A step of several microbatches on this device: one after the other, with what joins them.

Every microbatch draws from the same state of the generators: a value that is split along the
microbatches draws the numbers of all of them, and keeps its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
import torch.distributed as dist
from torch import Tensor, fx

from shardlang.ir.accumulated import AccumulatedStep, Piece, mesh_at
from shardlang.ir.collective import Kind
from shardlang.ir.compat import AttentionKernels, attention_kernels
from shardlang.ir.device_values import specialise
from shardlang.ir.leaf import ResultKind
from shardlang.ir.mesh import Axis
from shardlang.ir.precision import wider
from shardlang.ir.step import StepProgram, collectives_of, has_records, is_collective, record
from shardlang.runtime.groups import Connection, Group, Groups
from shardlang.runtime.lanes import lanes
from shardlang.runtime.region import Regions
from shardlang.runtime.step_executor import load_backward, load_forward, load_graph
from shardlang.runtime.watch import named
from shardlang.vjp.at_device import written_for
from shardlang.vjp.recorded import Recorded


class GroupsAt(Groups):
    """The groups of this device, as it computes one microbatch."""

    def __init__(self, groups: Groups, mesh: AccumulatedStep, microbatch: int) -> None:
        super().__init__(mesh_at(mesh.main.mesh, mesh.axis, microbatch), groups.rank, groups.device)
        self._inner, self._at = groups, {mesh.axis.name: microbatch}

    def on_host(self) -> Connection | None:
        """All devices, over gloo. Collective."""
        return self._inner.on_host()

    def of(self, axes: Iterable[Axis], stream: str = "") -> Group:
        """The group along `axes`, its members at the same microbatch."""
        found = self._inner.of(axes, stream)
        return replace(found, coords=tuple({**at, **self._at} for at in found.coords))


Run = Callable[..., Sequence[Tensor]]


@dataclass(frozen=True, slots=True)
class _Loaded:
    """The code of one microbatch, or of all where they do not differ."""

    early: Run
    forward: Callable[..., tuple[Sequence[Tensor], Sequence[object]]]
    backward: Run


@dataclass(frozen=True, slots=True)
class Accumulated:
    """What a step of several microbatches gives.

    Attributes:
        loss: of all of them together.
        gradients: by the names of the leaves, as `Leaf.layout` says.
        written: the new values of buffers, by name.
    """

    loss: Tensor
    gradients: Mapping[str, Tensor]
    written: Mapping[str, Tensor]


class Accumulating:
    """A step of several microbatches, loaded on this device."""

    def __init__(
        self, step: AccumulatedStep, groups: Groups, regions: Regions | None = None
    ) -> None:
        """Load it, to be compiled by `regions`. Collective: construct it on every rank."""
        self.step, count, self.regions = step, step.axis.size, regions
        at = [GroupsAt(groups, step, i) for i in range(count)]
        self.coords, self._at, self._device = [one.coord for one in at], at, groups.device
        self._same = differ_nowhere(step, self.coords)
        if regions is not None:  # ranks compare each code that they compile: they have as many
            self._same = _on_all(self._same, groups)
        self._by_kernels: dict[AttentionKernels, list[_Loaded]] = {}
        self._loaded()
        self._finish = self._piece(step.finish, at[0])
        self._reduce = self._piece(step.reduce, at[0])

    def _loaded(self) -> list[_Loaded]:
        """The code of every microbatch, by the kernels of attention that are allowed now."""
        kernels = attention_kernels() if has_records(self.step.main) else ()
        if kernels not in self._by_kernels:
            first, *others = self._at
            made = self._load(first)
            more = [made if self._same else self._load(one) for one in others]
            self._by_kernels[kernels] = [made, *more]
        return self._by_kernels[kernels]

    def _load(self, groups: GroupsAt) -> _Loaded:
        step, main = self.step, written_for(self.step.main, groups.coord, groups.device)
        streams = lanes(main.graph, groups)
        forward = load_forward(main, streams, self.regions)
        backward = load_backward(main, streams, forward.saved, self.regions)
        return _Loaded(self._piece(step.early, groups), forward.run, backward.run)

    def _piece(self, piece: Piece, groups: GroupsAt) -> Run:
        return load_graph(piece.graph, lanes(piece.graph, groups), self.regions)

    @torch.no_grad()
    def __call__(self, leaves: Sequence[Mapping[str, Tensor]], scale: float = 1.0) -> Accumulated:
        """Run the step. Collective.

        Args:
            leaves: for every microbatch, this device's shards of all leaves by name.
            scale: by what the gradients are multiplied.
        """
        step, states, loaded = self.step, random_states(), self._loaded()
        totals = self._totals(loaded, leaves)
        parts: dict[str, Tensor] = {}
        written: dict[str, Tensor] = {}
        sums: dict[str, Tensor] = {}
        for number, (one, own) in enumerate(zip(loaded, leaves, strict=True)):
            restore(states)
            written = self._one(one, {**own, **totals}, number, parts, sums, scale)
        loss = self._finished(leaves, totals, parts)
        gradients = self._reduce(*_given(step.reduce, sums))
        return Accumulated(loss, dict(zip(step.reduce.gives, gradients, strict=True)), written)

    @torch.no_grad()
    def loss(self, leaves: Sequence[Mapping[str, Tensor]]) -> Tensor:
        """The loss of all microbatches, of the forwards alone. Collective."""
        states, loaded = random_states(), self._loaded()
        totals = self._totals(loaded, leaves)
        parts: dict[str, Tensor] = {}
        for number, (one, own) in enumerate(zip(loaded, leaves, strict=True)):
            restore(states)
            have = {**own, **totals}
            results, _ = one.forward(*(have[leaf.name] for leaf in self.step.main.leaves))
            add_up(parts, divided(self.step.main, results)[0], number)
        return self._finished(leaves, totals, parts)

    def _finished(
        self,
        leaves: Sequence[Mapping[str, Tensor]],
        totals: Mapping[str, Tensor],
        parts: Mapping[str, Tensor],
    ) -> Tensor:
        """The loss, made of the parts of all microbatches."""
        finish = self.step.finish
        (loss,) = self._finish(*_given(finish, {**leaves[0], **totals, **parts}))
        return loss

    def _totals(
        self, loaded: Sequence[_Loaded], leaves: Sequence[Mapping[str, Tensor]]
    ) -> dict[str, Tensor]:
        """What the microbatches need first of all of them together."""
        step = self.step
        early = [
            dict(zip(step.early.gives, one.early(*_given(step.early, own)), strict=True))
            for one, own in zip(loaded, leaves, strict=True)
        ]
        return totals_of(early, step.joins)

    def _one(
        self,
        loaded: _Loaded,
        have: Mapping[str, Tensor],
        number: int,
        parts: dict[str, Tensor],
        sums: dict[str, Tensor],
        scale: float,
    ) -> dict[str, Tensor]:
        """Forward and backward of one microbatch; its parts are added. Gives what is written."""
        main = self.step.main
        results, saved = loaded.forward(*(have[leaf.name] for leaf in main.leaves))
        kept = list(saved)
        del saved
        ends, written = divided(main, results)
        add_up(parts, ends, number)
        cotangents = [self._seed(scale)]
        del results, ends
        given = loaded.backward(kept, cotangents)
        gradients = dict(zip(main.gradients, given, strict=True))
        del given
        add_up(sums, gradients, number, self.step.wide)
        return written

    def _seed(self, scale: float) -> Tensor:
        """The gradient of the loss."""
        shape, dtype = self.step.loss.layout.shape, self.step.loss.dtype
        return torch.full(shape, scale, dtype=torch.float64, device=self._device).to(dtype)


def divided(
    main: StepProgram, results: Sequence[Tensor]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The results that are parts of totals, and those that are new values of buffers, by name."""
    pairs = list(zip(main.results, results, strict=True))
    ends = {r.name: x for r, x in pairs if r.kind is ResultKind.OUTPUT}
    return ends, {r.name: x for r, x in pairs if r.kind is ResultKind.MUTATION}


def _given(piece: Piece, values: Mapping[str, Tensor]) -> list[Tensor]:
    return [values[name] for name in piece.takes]


def add_up(
    into: dict[str, Tensor],
    values: Mapping[str, Tensor],
    number: int,
    wide: torch.dtype | None = None,
) -> None:
    """Add the values of one microbatch; the first ones are not changed.

    Args:
        wide: the type of the sums of narrower values.
    """
    for name, value in values.items():
        if number == 0:
            into[name] = value.to(wider(value.dtype, wide))
        elif number == 1 and into[name].dtype == value.dtype:
            into[name] = into[name] + value
        else:
            into[name].add_(value)


def totals_of(parts: Sequence[Mapping[str, Tensor]], joins: Mapping[str, int]) -> dict[str, Tensor]:
    """The totals by name, of the parts that the microbatches have: sums, or one after the other."""
    found: dict[str, Tensor] = {}
    for name in parts[0]:
        each = [values[name] for values in parts]
        found[name] = torch.cat(each, joins[name]) if name in joins else sum(each[1:], each[0])
    return found


def _on_all(flag: bool, groups: Groups) -> bool:
    """Whether a flag is set on every rank. Collective."""
    host = groups.on_host()
    if host is None:
        return flag
    flags = [flag] * groups.mesh.devices
    label = "comparison of the code of microbatches"
    named(label, dist.all_gather_object, flags, flag, host.process_group)
    return all(flags)


def differ_nowhere(step: AccumulatedStep, coords: Sequence[Mapping[str, int]]) -> bool:
    """Whether the code of all microbatches is the same on a device."""
    graphs = (step.early.graph, step.main.graph)
    return all(_alike(node, coords) for graph in graphs for node in graph.nodes)


def _alike(node: fx.Node, coords: Sequence[Mapping[str, int]]) -> bool:
    first, *others = (_here(node, at) for at in coords)
    return all(one == first for one in others)


def _here(node: fx.Node, at: Mapping[str, int]) -> str:
    """What a node does at a coordinate, in words."""
    if not is_collective(node):
        own = specialise((node.args, node.kwargs), at)
        shards = Recorded.of(node).shards(at) if node.target is record else ()
        return str((own, shards))
    found = []
    for x, c in collectives_of(node):
        first = c.kind is Kind.FIRST and all(at[axis.name] == 0 for axis in c.axes)
        found.append((x.name, c.kind, c.src.local_shape(at), c.dst.local_shape(at), first))
    return str(found)


RandomStates = tuple[Tensor, list[Tensor]]
"""Of the generator on the host, and of those on the GPUs."""


def random_states() -> RandomStates:
    """The states of the generators on the host and on the GPUs."""
    on_gpus = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return torch.get_rng_state(), torch.cuda.get_rng_state_all() if on_gpus else []


def restore(states: RandomStates) -> None:
    """Set the generators to what `random_states` gave."""
    torch.set_rng_state(states[0])
    if states[1]:
        torch.cuda.set_rng_state_all(states[1])
