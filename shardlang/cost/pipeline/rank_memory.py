"""The memory of one rank of a pipeline over a step, action after action, to the byte.

It is what `runtime.stages` holds. A variable is freed behind the last statement that reads it. What
is read later, or handed out, lies with the values of its stage and microbatch until the last part
that reads it has taken it. Beside that a rank holds:

- all the time its parameters and buffers, its inputs of all microbatches, and the totals that are
  made before the first forward;
- a value or gradient from another rank from the beginning of the action before the one that takes
  it: there the receive is posted;
- what it sends, in order in memory, until the first of its actions that comes behind the reader's
  in the order of the schedule;
- the sums of gradients from the first backward on. The second summand is added to new memory, since
  the first may be memory of others; the later ones in place.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Mapping, Sequence

import torch
from torch import fx

from shardlang.cost.effects import Held, TensorType, Value, held_by
from shardlang.cost.heap import is_computed, one
from shardlang.cost.pipeline.loaded import Loaded, PartLives
from shardlang.cost.pipeline.standing import Load, Standing, Types
from shardlang.ir.leaf import ResultKind
from shardlang.ir.pipeline.action import Action, Work
from shardlang.ir.pipeline.schedule import PipelineSchedule
from shardlang.ir.pipeline.staged import StagedStep
from shardlang.runtime.stages.routes import Message, routes_of, within

Values = dict[str, Held]


class RankMemory(Standing):
    """What the actions of a rank do to the memory of one of its devices.

    Attributes:
        begins: of every action, the number of its first statement; None is what follows the last.
        saved: the storages of what is handed from a forward to its backward.
        moved: those of what is sent or has arrived.
    """

    def __init__(
        self,
        step: StagedStep,
        schedule: PipelineSchedule,
        order: Sequence[Action],
        rank: int,
        load: Load,
        types: Types,
    ) -> None:
        """`order`: all actions, in an order in which they can be done one after the other."""
        own = {action.stage for action in schedule.ranks[rank]}
        super().__init__(step, own, load, types)
        self.schedule = schedule
        self.actions = [action for action in order if action.stage in own]
        self.begins: list[tuple[int, Action | None]] = []
        self.saved, self.moved = set[int](), set[int]()
        self._routes = routes_of(step, schedule, order, rank)
        self._due = {way: deque(row) for way, row in self._routes.arriving.items()}
        self._last = {(action.stage, action.microbatch): action for action in self.actions}
        self._posted: dict[Message, Held] = {}
        self._sending: dict[Message, Held] = {}
        self._values: dict[tuple[int, int], Values] = {}

    def run(self) -> None:
        """Go through the step."""
        self.take_leaves()
        self.before()
        for action, after in zip(self.actions, [*self.actions[1:], None], strict=True):
            self.begins.append((len(self.statements), action))
            self._settle(self._routes.done.get(action, ()))
            self._post(action)
            self._post(after)
            self.did(None)
            self._act(action)
        self._settle(list(self._sending))
        self.begins.append((len(self.statements), None))
        self.behind()

    # what comes and goes

    def _post(self, action: Action | None) -> None:
        """The memory into which what an action takes from other ranks comes."""
        for way, message in self._routes.needed.get(action, ()) if action is not None else ():
            while message not in self._posted and message in self._due[way]:
                first = self._due[way].popleft()
                self._posted[first] = self.arriving(self.types(first.value, first.microbatch))
                self.moved.update(self._posted[first].storages)

    def _settle(self, messages: Collection[Message]) -> None:
        """Let go of what has been sent."""
        for message in messages:
            if message in self._sending:
                self.release(self._sending.pop(message))

    def _send(self, action: Action, values: Values) -> None:
        """Hand values to stages of this rank, and hold those that go to others."""
        for message in within(self.step, self.schedule, action):
            other = self._values.setdefault((message.target, message.microbatch), {})
            self._put(other, message.value, values[message.value])
        for _, message in self._routes.sent.get(action, ()):
            value = values[message.value]
            of = value.type
            assert isinstance(of, TensorType)
            self._sending[message] = value if of.is_dense else self.copied(of)
            self.hold(self._sending[message])
            self.moved.update(self._sending[message].storages)

    # actions

    def _act(self, action: Action) -> None:
        here = self.load(action.stage, action.microbatch)
        key, part = (action.stage, action.microbatch), here.parts[action.work]
        values = self._values.setdefault(key, {})
        for _, message in self._routes.needed.get(action, ()):
            values[message.value] = self._posted.pop(message)
            if here.nodes[message.value] in here.handed:
                self.saved.update(values[message.value].storages)
        if action.work is Work.FORWARD:
            self._take(here, action.microbatch, values)
        elif action.is_backward:
            self._take_seeds(here, values)
        self._run(here, part, values)
        self._send(action, values)
        if action.work is Work.FORWARD:
            self._give_results(here, values)
        else:
            self._give_gradients(here, part, values)
        for name in part.later:
            if name in values:
                self.release(values.pop(name))
        if action == self._last[key]:
            for value in self._values.pop(key).values():
                self.release(value)

    def _take(self, here: Loaded, number: int, values: Values) -> None:
        leaf_of = self.leaf_of(number)
        for leaf, node in here.leaves:
            if leaf.name not in here.stage.values:
                self._put(values, node.name, leaf_of(self.name_of(leaf)))

    def _take_seeds(self, here: Loaded, values: Values) -> None:
        """The cotangents of the stage's own results; those of others have arrived."""
        loss = self.step.whole.loss
        for name, node in here.cotangents:
            if name not in here.stage.gradients:
                wide = TensorType.dense(loss.layout.shape, torch.float64)
                self.did(None, wide.bytes)
                self._put(values, node.name, self.copied(wide, loss.dtype))

    def _run(self, here: Loaded, part: PartLives, values: Values) -> None:
        """The code of an action; what it takes and nothing reads later goes behind its last use."""
        taken = {here.nodes[name]: values[name] for name in part.takes}
        ends = {here.nodes[name] for name in part.drops}
        for name in part.drops:
            del values[name]
        env: dict[fx.Node, Value] = dict(taken)
        given = {name: part.half.variable(here.nodes[name]) for name in part.gives}
        kept = set(given.values())
        self.run_half(here.calls, part.half, env, kept, lambda x: is_computed(x) or x in ends)
        for name, variable in given.items():
            self._put(values, name, one(env[variable]))
            if here.nodes[name] in here.handed:
                self.saved.update(n for n in held_by(env[variable]) if n not in self.leaves)
        self._free(part, ends, kept, env)

    def _free(
        self,
        part: PartLives,
        ends: Collection[fx.Node],
        kept: Collection[fx.Node],
        env: Mapping[fx.Node, Value],
    ) -> None:
        """Variables of the code, and what it was given without reading it."""
        read = {variable for freed in part.half.freed.values() for variable in freed}
        for node in ends:
            if node not in read or node in kept:
                self.release(env[node])
        for variable in kept:
            if variable in part.computed:
                self.release(env[variable])

    def _give_results(self, here: Loaded, values: Values) -> None:
        nodes, _ = here.stage.step.returned
        for result, node in zip(here.stage.step.results, nodes, strict=True):
            if result.kind is ResultKind.MUTATION:
                self.totals.replace(result.name, values[node.name])
            elif result.name not in here.stage.gives:
                self.totals.add(result.name, values[node.name])

    def _give_gradients(self, here: Loaded, part: PartLives, values: Values) -> None:
        _, nodes = here.stage.step.returned
        for name, node in zip(here.stage.step.gradients, nodes, strict=True):
            if name in part.hands and name not in here.stage.returns:
                self.sums.add(name, values[node.name])

    def _put(self, values: Values, name: str, value: Held) -> None:
        """Hold a value by name; one of that name before is let go."""
        self.hold(value)
        known = values.get(name)
        values[name] = value
        if known is not None:
            self.release(known)
