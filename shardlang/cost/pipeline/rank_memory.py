"""The memory of one rank of a pipeline over a step, action after action, to the byte.

A variable is freed behind the last statement that reads it. What a forward leaves to its backward
lies in a list until the part that reads it last has taken it. Beside that a rank holds:

- all the time its parameters and buffers, its inputs of all microbatches, and the totals that are
  made before the first forward;
- a value or gradient from another rank from the beginning of the action before the one that takes
  it: there the receive is posted, behind those of what is sent over the same way before it. A
  forward gives it up at its end, a backward behind its last use;
- what it sends, in order in memory, until it begins an action that comes, in the order of the
  schedule, after the one that reads it: then the send is done (`Routes.done`);
- the sums of gradients from the first backward on. The second summand is added to new memory, since
  the first may be memory of others; the later ones in place.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import fx

from shardlang.cost.effects import Held, TensorType, Value, held_by
from shardlang.cost.half import Half
from shardlang.cost.half_effect import one
from shardlang.cost.heap import is_computed
from shardlang.cost.pipeline.ends import Ends
from shardlang.cost.pipeline.loaded import Loaded
from shardlang.cost.pipeline.standing import Load, Standing
from shardlang.ir.leaf import ResultKind
from shardlang.ir.node import info
from shardlang.ir.pipeline.action import Action, Work
from shardlang.ir.pipeline.schedule import ActionList
from shardlang.ir.pipeline.staged import StagedStep
from shardlang.runtime.stages.routes import Message, Routes

Key = tuple[str, int, int]
"""A message: its value, the stage that reads it, and the microbatch."""


def _key(message: Message) -> Key:
    return message.value, message.target, message.microbatch


Types = Callable[[str, int], TensorType]
"""How what another stage gives lies, by its name and the microbatch."""


@dataclass(slots=True)
class _Frame:
    """A stage at one microbatch.

    Attributes:
        got: what other stages have given, by name.
        listed: what is handed to later parts.
    """

    got: dict[str, Held] = field(default_factory=dict)
    listed: dict[fx.Node, Value] = field(default_factory=dict)


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
        actions: ActionList,
        load: Load,
        types: Types,
        routes: Routes,
        ends: Ends,
    ) -> None:
        super().__init__(step, actions, load, ends)
        self.actions, self._types, self._routes = actions, types, routes
        self._due = {way: deque(row) for way, row in routes.arriving.items()}
        self.begins: list[tuple[int, Action | None]] = []
        self.saved, self.moved = set[int](), set[int]()
        self._frames: dict[tuple[int, int], _Frame] = {}
        self._sent: dict[Key, Held] = {}

    def run(self) -> None:
        """Go through the step."""
        self.take_leaves()
        self.before()
        for place, action in enumerate(self.actions):
            self.begins.append((len(self.statements), action))
            for message in self._routes.done.get(action, ()):
                self.release(self._sent.pop(_key(message)))
            for coming in self.actions[place + (place > 0) : place + 2]:
                self._post(coming)
            self.did(None)
            self._act(action)
        for value in self._sent.values():
            self.release(value)
        self.begins.append((len(self.statements), None))
        self.behind()

    # actions

    def _frame(self, stage: int, number: int) -> _Frame:
        return self._frames.setdefault((stage, number), _Frame())

    def _post(self, action: Action) -> None:
        """The memory into which what an action takes from other ranks comes, and all before it."""
        for way, message in self._routes.needed.get(action, ()):
            while message in self._due[way]:
                self._receive(self._due[way].popleft())

    def _receive(self, message: Message) -> None:
        of = self._types(message.value, message.microbatch)
        number = self.new(of.bytes, None, len(self.statements) - 1)
        self.moved.add(number)
        value = Held(of, (number,))
        self._frame(message.target, message.microbatch).got[message.value] = value
        self.hold(value)

    def _act(self, action: Action) -> None:
        here = self.load(action.stage, action.microbatch)
        frame = self._frame(action.stage, action.microbatch)
        if action.work is Work.FORWARD:
            self._forward(here, frame, action)
        else:
            self._backward(here, frame, action)

    def _forward(self, here: Loaded, frame: _Frame, action: Action) -> None:
        """From leaves and values of other stages to results and what is handed on."""
        half, leaf_of = here.parts[Work.FORWARD], self.leaf_of(action.microbatch)
        values: dict[fx.Node, Value] = {}
        for leaf, node in here.leaves:
            got = leaf.name in here.stage.values
            values[node] = frame.got[leaf.name] if got else leaf_of(self.name_of(leaf))
        results, _ = here.stage.step.returned
        saved = [node for node in here.handed if not info(node).backward]
        variables = [half.variable(node) for node in (*results, *saved)]
        self.run_half(here.calls, half, values, variables)
        for node in saved:
            self._list(frame, node, values[half.variable(node)])
        for node, result in zip(results, here.stage.step.results, strict=True):
            value = one(values[half.variable(node)])
            if result.name in here.stage.gives:
                self._send(result.name, value, here.stage.gives[result.name], action.microbatch)
            elif result.kind is ResultKind.MUTATION:
                self.totals.replace(result.name, value)
            else:
                self.totals.add(result.name, value)
        self.let_go(variables, values)
        for name in here.stage.values:
            self.release(frame.got.pop(name))

    def _backward(self, here: Loaded, frame: _Frame, action: Action) -> None:
        """From what was handed on to gradients; those of weights are added up."""
        half = here.parts[action.work]
        if action.is_backward:
            self._take_cotangents(here, frame)
        leaf_of = self.leaf_of(action.microbatch)
        values: dict[fx.Node, Value] = {
            node: leaf_of(self.name_of(leaf))
            for leaf, node in here.leaves
            if leaf.name not in here.stage.values
        }
        values |= frame.listed
        made = {*half.statements, *half.same}
        apart = action.work is Work.INPUT
        handed = [node for node in here.handed if node in made] if apart else []
        pairs = list(zip(here.stage.step.gradients, here.stage.step.returned[1], strict=True))
        if action.is_backward:  # what is handed through is made by no call
            through = [(name, frame.listed[x]) for name, x in pairs if x in frame.listed]
            self._give(here, [(name, one(x)) for name, x in through], action.microbatch)
        gradients = [(name, half.variable(node)) for name, node in pairs if node in made]
        ending = {node for node in frame.listed if here.ends(node, action.work)}
        stay = {half.variable(node) for node in handed} | {node for _, node in gradients}
        kept = stay | (frame.listed.keys() - ending)
        self.run_half(here.calls, half, values, kept, lambda x: is_computed(x) or x in ending)
        self._give(here, [(name, one(values[node])) for name, node in gradients], action.microbatch)
        for node in handed:
            self._list(frame, node, values[half.variable(node)])
        self.let_go(stay.intersection(half.statements), values)
        self._drop(frame, half, ending, stay)

    def _take_cotangents(self, here: Loaded, frame: _Frame) -> None:
        """The gradients of results: one of the loss is made here, others have come."""
        loss = self.step.whole.loss
        for name, node in here.cotangents:
            if name in here.stage.gradients:
                frame.listed[node] = frame.got.pop(name)
                continue
            made = TensorType.dense(loss.layout.shape, loss.dtype)
            self.did(None, made.bytes if loss.dtype is torch.float64 else made.bytes + 8)
            frame.listed[node] = Held(made, (self.new(made.bytes, node, len(self.statements) - 1),))
            self.hold(frame.listed[node])

    def _give(self, here: Loaded, gradients: Iterable[tuple[str, Held]], number: int) -> None:
        for name, value in gradients:
            if name in here.stage.returns:
                self._send(name, value, here.stage.returns[name], number)
            else:
                self.sums.add(name, value)

    def _list(self, frame: _Frame, node: fx.Node, value: Value) -> None:
        self.hold(value)
        frame.listed[node] = value
        self.saved.update(n for n in held_by(value) if n not in self.leaves)

    def _drop(
        self, frame: _Frame, half: Half, ending: Collection[fx.Node], stay: Collection[fx.Node]
    ) -> None:
        """Free what was handed on and not read, and forget what was."""
        read = {variable for freed in half.freed.values() for variable in freed}
        for node in ending:
            value = frame.listed.pop(node)
            if node not in read or node in stay:
                self.release(value)

    def _send(self, name: str, value: Held, stages: Sequence[int], number: int) -> None:
        """Hand a value to stages of this rank; to others in order in memory."""
        of = value.type
        assert isinstance(of, TensorType)
        for stage in stages:
            if stage in self.own:
                self._frame(stage, number).got[name] = value
                self.hold(value)
                continue
            message = value if of.is_dense else self.copied(of)
            self.hold(message)
            self.moved.update(message.storages)
            self._sent[name, stage, number] = message
