"""What lies on a rank of a pipeline through a whole step, and what it does once.

These are leaves, totals that are made before the first forward, and sums.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from torch import fx

from shardlang.cost.effects import Held, TensorType, Value, held_by
from shardlang.cost.half_effect import one
from shardlang.cost.heap import Heap
from shardlang.cost.pipeline.loaded import Loaded
from shardlang.cost.pipeline.sums import Sums
from shardlang.ir.accumulated import Piece
from shardlang.ir.leaf import Leaf, LeafKind
from shardlang.ir.node import returned_nodes
from shardlang.ir.pipeline.schedule import ActionList
from shardlang.ir.pipeline.staged import StagedStep

Load = Callable[[int, int], Loaded]
"""A stage for a microbatch, by their numbers."""


class Standing(Heap):
    """The memory of a rank before its first action and behind its last.

    Attributes:
        own: the stages of the rank.
        leaves: the kind of the leaf that a storage holds.
        sums: those of gradients.
        totals: parts of totals, and new values of buffers.
        gradients: the storages of the gradients, when all is done.
    """

    def __init__(self, step: StagedStep, actions: ActionList, load: Load) -> None:
        super().__init__()
        self.step, self.load = step, load
        self.own = sorted({action.stage for action in actions})
        self.leaves: dict[int, LeafKind] = {}
        self.sums, self.totals = Sums(self, step.whole.wide), Sums(self)
        stages = (step.stages[stage].step for stage in self.own)
        self._names = {leaf.name for stage in stages for leaf in stage.leaves}
        self._kinds = {leaf.name: leaf.kind for leaf in step.whole.main.leaves}
        self.gradients = set[int]()
        self._at_hand: dict[str, Held] = {}
        self._inputs: dict[tuple[str, int], Held] = {}

    def take_leaves(self) -> None:
        """All that is there when a step begins."""
        for stage in self.own:
            for number in range(self._count):
                here = self.load(stage, number)
                for leaf, node in here.leaves:
                    if leaf.name not in (*here.stage.values, *self.step.whole.early.gives):
                        self._take_leaf(self.name_of(leaf), leaf.kind, number, here, node)

    def _take_leaf(
        self, name: str, kind: LeafKind, number: int, here: Loaded, node: fx.Node
    ) -> None:
        """A leaf, if it was not there yet."""
        if kind is LeafKind.INPUT:
            if (name, number) not in self._inputs:
                self._inputs[name, number] = self._given(here.type_of(node), node, kind)
        elif name not in self._at_hand:
            self._at_hand[name] = self._given(here.type_of(node), node, kind)

    def name_of(self, leaf: Leaf) -> str:
        """The name under which a rank holds a leaf: that of the first stage if that is here too."""
        return leaf.tied if leaf.tied is not None and leaf.tied in self._names else leaf.name

    def _given(self, of: TensorType, node: fx.Node, kind: LeafKind) -> Held:
        number = self.new(of.bytes, node, len(self.statements) - 1)
        self.leaves[number] = kind
        value = Held(of, (number,))
        self.hold(value)
        return value

    def before(self) -> None:
        """The totals that are made before the first forward, by every rank for itself."""
        early = self.step.whole.early
        if not early.gives:
            return
        made: list[Sequence[Held]] = []
        for number in range(self._count):
            here = self.load(self.own[0], number)
            placeholders = early.graph.find_nodes(op="placeholder")
            for name, node in zip(early.takes, placeholders, strict=True):
                self._take_leaf(name, self._kinds[name], number, here, node)
            made.append(self._piece(early, here, self.leaf_of(number)))
        for place, name in enumerate(early.gives):
            types = [one(values[place]).type for values in made]
            self._at_hand[name] = self._total(name, [t for t in types if isinstance(t, TensorType)])
        for values in made:
            for value in values:
                self.release(value)

    def _total(self, name: str, parts: Sequence[TensorType]) -> Held:
        """The sum of the parts, or one behind the other."""
        shape = list(parts[0].shape)
        dim = self.step.whole.joins.get(name)
        if dim is not None:
            shape[dim] = sum(part.shape[dim] for part in parts)
        made = TensorType.dense(tuple(shape), parts[0].dtype)
        value = Held(made, (self.new(made.bytes, None, len(self.statements)),))
        self.did(None, made.bytes)
        self.hold(value)
        return value

    def behind(self) -> None:
        """The loss, and the gradients that are made of the sums."""
        here, finish = self.load(self.own[-1], 0), self.step.whole.finish
        ends = self.step.stages[self.own[-1]].step.results
        if any(result.name in finish.takes for result in ends):
            self._piece(finish, here, lambda name: self.totals.get(name) or self._known(name, here))
        for stage in self.own:
            piece, here = self.step.reduces[stage], self.load(stage, 0)
            for value in self._piece(piece, here, self.sums.value):
                self.gradients.update(held_by(value))
        self.did(None)

    def _known(self, name: str, here: Loaded) -> Held:
        """A leaf; a parameter of another stage, which the loss is made of, is sent round."""
        if name in self._at_hand or (name, 0) in self._inputs:
            return self.leaf_of(0)(name)
        leaf = next(leaf for leaf in self.step.whole.main.leaves if leaf.name == name)
        of = TensorType.dense(leaf.at_rest.local_shape(here.coord), leaf.dtype)
        value = Held(of, (self.new(of.bytes, None, len(self.statements)),))
        self.did(None, of.bytes)
        self.hold(value)
        return value

    def _piece(self, piece: Piece, here: Loaded, given: Callable[[str], Held]) -> Sequence[Held]:
        """What a graph beside the stages gives; it is held."""
        half, ends = here.part_of(piece.graph), returned_nodes(piece.graph)
        placeholders = piece.graph.find_nodes(op="placeholder")
        pairs = zip(placeholders, piece.takes, strict=True)
        values: dict[fx.Node, Value] = {node: given(name) for node, name in pairs}
        variables = [half.variable(node) for node in ends]
        self.run_half(here.calls, half, values, variables)
        made = [one(values[variable]) for variable in variables]
        for value in made:
            self.hold(value)
        self.let_go(variables, values)
        return made

    def leaf_of(self, number: int) -> Callable[[str], Held]:
        """The leaves of a microbatch, by name."""
        return lambda name: self._inputs.get((name, number)) or self._at_hand[name]

    @property
    def _count(self) -> int:
        return self.step.whole.axis.size

    def let_go(self, variables: Iterable[fx.Node], values: dict[fx.Node, Value]) -> None:
        """Variables of a part are gone at its end."""
        for variable in dict.fromkeys(variables):
            if variable.op == "call_function":
                self.release(values[variable])
