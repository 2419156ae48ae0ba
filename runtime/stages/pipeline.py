"""The step of a pipeline on this device: the actions of its stages, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

import torch
from torch import Tensor

from shardlang.ir.accumulated import Piece
from shardlang.ir.compat import AttentionKernels, attention_kernels
from shardlang.ir.leaf import LeafKind, ResultKind
from shardlang.ir.node import info
from shardlang.ir.pipeline.action import Action, Work
from shardlang.ir.pipeline.stage import StageProgram
from shardlang.ir.pipeline.stage_text import stage_lines
from shardlang.ir.step import has_records
from shardlang.runtime.accumulate import (
    Accumulated,
    GroupsAt,
    differ_nowhere,
    random_states,
    restore,
    totals_of,
)
from shardlang.runtime.first_run import FirstRun
from shardlang.runtime.groups import Groups
from shardlang.runtime.lanes import connect, lanes
from shardlang.runtime.region import Regions
from shardlang.runtime.stages.links import Links, Traffic, told
from shardlang.runtime.stages.part import load_parts
from shardlang.runtime.stages.routes import routes_of, within
from shardlang.runtime.stages.running import Clock, Leaves, Parts, Plan, Running
from shardlang.runtime.stages.same import Comparison
from shardlang.runtime.stages.shared import Round, Shared
from shardlang.runtime.stages.tied import Tied
from shardlang.runtime.step_executor import load_graph
from shardlang.vjp.at_device import written_for


def _unclocked(_: Action) -> AbstractContextManager[object]:
    return nullcontext()


class Pipeline:
    """A step of several stages, loaded on this device."""

    def __init__(self, plan: Plan, groups: Groups, regions: Regions | None = None) -> None:
        """Load the stages of this device. Collective: construct it on every rank.

        Raises:
            RunError: SH0602, ranks hold different programs of a stage; SH0645, a tied parameter
                lies otherwise in another stage.
        """
        self.plan, self.groups, self.regions = plan, groups, regions
        step, whole = plan.step, plan.step.whole
        self.rank, rank_of = groups.coord[plan.axis.name], plan.schedule.rank_of()
        self.stages = [i for i, rank in enumerate(rank_of) if rank == self.rank]
        self._at = [GroupsAt(groups, whole, i) for i in range(whole.axis.size)]
        self.coords = [one.coord for one in self._at]
        self._routes = routes_of(step, plan.schedule, plan.order, self.rank)
        self._tied = Tied(step, rank_of, self.rank)
        self._compare(rank_of)
        self._connect()
        self._links = Links(plan.axis, groups, sorted({*self._routes.ways, *self._tied.ways}))
        self._shared = Shared(plan.axis, groups)
        self._mine = [a for a in plan.order if rank_of[a.stage] == self.rank]
        self._last = {(a.stage, a.microbatch): a for a in self._mine}
        self._trains = any(a.is_backward for a in plan.order)
        self._draws = any(info(node).random for node in whole.main.graph.nodes)
        self._round = Round.of(step)
        leaves = (leaf for i in self.stages for leaf in step.stages[i].step.leaves)
        self._owned = {leaf.name for leaf in leaves if leaf.kind is LeafKind.PARAM}
        self._run = self._all if regions is None else FirstRun(self._all, regions, groups)
        self._early = [self._piece(whole.early, one) for one in self._at]
        self._by_kernels: dict[AttentionKernels, list[Parts]] = {}
        self._loaded()
        self._reduces = {i: self._piece(step.reduces[i], self._at[0]) for i in self.stages}
        self._finish = self._piece(whole.finish, self._at[0])

    @property
    def gradients(self) -> frozenset[str]:
        """The parameters that get a gradient, by name, whichever stages they are in."""
        step = self.plan.step
        return frozenset(step.tied.get(x, x) for piece in step.reduces for x in piece.gives)

    @property
    def reads(self) -> set[str]:
        """The leaves that this device needs of a microbatch, by name, but for tied copies."""
        step = self.plan.step
        mine = (leaf for i in self.stages for leaf in step.stages[i].step.leaves)
        other = {name for i in self.stages for name in step.stages[i].values}
        names = {leaf.name for leaf in mine} | {*step.whole.early.takes, *step.whole.finish.takes}
        leaves = {leaf.name for leaf in step.whole.main.leaves}
        totals = {*step.whole.early.gives, *step.tied}
        return names & leaves - totals - other

    def _compare(self, rank_of: Sequence[int]) -> None:
        """Whether other ranks hold the same stages and links. Collective."""
        plan, links = self.plan, told(self._routes, self.plan.shapes)
        for way, lines in self._tied.told(self.coords[0]).items():
            links[way] = [*lines, *links.get(way, [])]
        stages = {number: stage_lines(plan.step, number) for number in self.stages}
        Comparison(plan.axis, self.groups, rank_of).check(stages, links)

    def _connect(self) -> None:
        """Make the groups of all stages: every rank takes part in that, whoever has the stage."""
        step = self.plan.step
        pieces = (step.whole.early, step.whole.finish, *step.reduces)
        for graph in (*(x.graph for x in pieces), *(x.step.graph for x in step.stages)):
            connect(graph, self._at[0])

    def _piece(self, piece: Piece, groups: GroupsAt) -> Callable[..., Sequence[Tensor]]:
        return load_graph(piece.graph, lanes(piece.graph, groups), self.regions, alone=True)

    def _loaded(self) -> list[Parts]:
        """The code of every microbatch, by the kernels of attention that are allowed now."""
        kernels = attention_kernels() if has_records(self.plan.step.whole.main) else ()
        if kernels not in self._by_kernels:
            first, *others = self._at
            made = self._load(first)
            alike = differ_nowhere(self.plan.step.whole, self.coords)
            more = [made if alike else self._load(one) for one in others]
            self._by_kernels[kernels] = [made, *more]
        return self._by_kernels[kernels]

    def _load(self, groups: GroupsAt) -> Parts:
        """The code of all actions of one microbatch."""
        works: dict[int, set[Work]] = {i: set() for i in self.stages}
        for action in self.plan.order:
            if action.stage in works:
                works[action.stage].add(action.work)
        return {
            i: load_parts(self._here(self.plan.step.stages[i], groups), each, groups, self.regions)
            for i, each in works.items()
        }

    def _here(self, stage: StageProgram, groups: GroupsAt) -> StageProgram:
        """A stage as this device runs it."""
        return replace(stage, step=written_for(stage.step, groups.coord, groups.device))

    @torch.no_grad()
    def __call__(
        self, leaves: Callable[[int], Leaves], scale: float = 1.0, clock: Clock | None = None
    ) -> Accumulated:
        """Run the step. Collective.

        Args:
            leaves: of a microbatch, this device's shards by name: those that its stages read.
            scale: by what the gradients are multiplied.
            clock: notes when every action begins and ends.
        """
        return self._run(leaves, scale, clock or _unclocked)

    def _all(self, leaves: Callable[[int], Leaves], scale: float, clock: Clock) -> Accumulated:
        states, running = random_states(), self._begin(leaves, scale)
        for action, after in zip(self._mine, [*self._mine[1:], None], strict=True):
            restore(states)
            running.traffic.settle(action)
            running.traffic.post(action)
            running.traffic.post(after)
            self._act(running, action, clock)
        running.traffic.finish()
        return self._end(running)

    def _begin(self, leaves: Callable[[int], Leaves], scale: float) -> Running:
        """What is there before the first action: leaves, tied values and the early totals."""
        whole = self.plan.step.whole
        own = [leaves(i) for i in range(whole.axis.size)]
        tied = self._tied.values(self._links, own[0], self.coords[0])
        early = [
            dict(zip(whole.early.gives, run(*(one[x] for x in whole.early.takes)), strict=True))
            for run, one in zip(self._early, own, strict=True)
        ]
        totals = totals_of(early, whole.joins)
        traffic = Traffic(self._links, self._routes, self.plan.shapes)
        return Running(traffic, [{**one, **tied, **totals} for one in own], self._loaded(), scale)

    def _act(self, running: Running, action: Action, clock: Clock) -> None:
        """One action: its values come in, it computes, and what others read goes out."""
        stage, key = self.plan.step.stages[action.stage], (action.stage, action.microbatch)
        values = running.values.setdefault(key, {})
        for message, x in running.traffic.arrived(action):
            values[message.value] = x
        if action.work is Work.FORWARD:
            self._take_leaves(stage, running.leaves[action.microbatch], values)
        elif action.is_backward:
            self._take_seeds(stage, running.scale, values)
        part = running.loaded[action.microbatch][action.stage][action.work]
        with clock(action):
            part(values)
        for message in within(self.plan.step, self.plan.schedule, action):
            other = running.values.setdefault((message.target, message.microbatch), {})
            other[message.value] = values[message.value]
        running.traffic.send(action, values)
        if action.work is Work.FORWARD:
            self._give_results(running, stage, values)
        else:
            self._give_gradients(running, stage, part.hands, values)
        part.let_go(values)
        if action == self._last[key]:
            del running.values[key]
        if self._draws and action.work is Work.FORWARD and running.drawn is None:
            running.drawn = random_states()

    def _take_leaves(self, stage: StageProgram, given: Leaves, values: dict[str, object]) -> None:
        for leaf in stage.step.leaves:
            if leaf.name not in stage.values:
                values[leaf.node] = given[leaf.name]

    def _take_seeds(self, stage: StageProgram, scale: float, values: dict[str, object]) -> None:
        """The cotangents of the stage's own results; those of others have arrived."""
        loss, device = self.plan.step.whole.loss, self.groups.device
        nodes = stage.step.graph.find_nodes(op="placeholder")[len(stage.step.leaves) :]
        for name, node in zip(stage.step.cotangents, nodes, strict=True):
            if name not in stage.gradients:
                seed = torch.full(loss.layout.shape, scale, dtype=torch.float64, device=device)
                values[node.name] = seed.to(loss.dtype)

    def _give_results(
        self, running: Running, stage: StageProgram, values: dict[str, object]
    ) -> None:
        """Add up the parts of totals, and keep what is written."""
        nodes, _ = stage.step.returned
        for result, node in zip(stage.step.results, nodes, strict=True):
            x = values[node.name]
            assert isinstance(x, Tensor)
            if result.kind is ResultKind.MUTATION:
                running.written[result.name] = x
            elif result.name not in stage.gives:
                running.add(running.parts, result.name, x)

    def _give_gradients(
        self,
        running: Running,
        stage: StageProgram,
        made: Collection[str],
        values: dict[str, object],
    ) -> None:
        """Add up the gradients of the stage's own leaves."""
        _, nodes = stage.step.returned
        for name, node in zip(stage.step.gradients, nodes, strict=True):
            if name in made and name not in stage.returns:
                x = values[node.name]
                assert isinstance(x, Tensor)
                running.add(running.sums, name, x, self.plan.step.whole.wide)

    def _end(self, running: Running) -> Accumulated:
        """The loss, which all stages get, and the gradients of this device's stages."""
        step, coord, rest = self.plan.step, self.coords[0], self._round
        parts = self._shared(rest.totals, running.parts, coord)
        held = {name: step.tied.get(name, name) for name in rest.read}
        mine = {n: running.leaves[0][x] for n, x in held.items() if x in self._owned}
        have = {**running.leaves[0], **parts, **self._shared(rest.read, mine, coord)}
        (loss,) = self._finish(*(have[name] for name in step.whole.finish.takes))
        written = self._shared(rest.buffers, running.written, coord)
        gradients = self._reduced(running)
        if self._trains:
            self._tied.add_gradients(self._links, gradients, coord)
            gradients.update(self._shared(rest.scalars, gradients, coord))
        if running.drawn is not None:
            restore(running.drawn)
        return Accumulated(loss, gradients, written)

    def _reduced(self, running: Running) -> dict[str, Tensor]:
        """The gradients of this device's stages, of their summed parts."""
        gradients: dict[str, Tensor] = {}
        for number in self.stages if self._trains else ():
            piece = self.plan.step.reduces[number]
            made = self._reduces[number](*(running.sums[name] for name in piece.takes))
            gradients.update(zip(piece.gives, made, strict=True))
        return gradients
