"""What lies on a rank of a pipeline through a whole step, and what it does once.

These are leaves, totals that are made before the first forward, and sums.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from torch import fx

from shardlang.cost.effects import Held, TensorType, Value, held_by
from shardlang.cost.half_effect import one, tensor_type
from shardlang.cost.heap import Heap
from shardlang.cost.pipeline.ends import Ends
from shardlang.cost.pipeline.loaded import Loaded
from shardlang.cost.pipeline.sums import Sums
from shardlang.ir.accumulated import Piece
from shardlang.ir.leaf import Leaf, LeafKind
from shardlang.ir.node import returned_nodes
from shardlang.ir.pipeline.schedule import ActionList
from shardlang.ir.pipeline.staged import StagedStep
from shardlang.runtime.stages.shared import Lies

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

    def __init__(self, step: StagedStep, actions: ActionList, load: Load, ends: Ends) -> None:
        super().__init__()
        self.step, self.load, self._ends = step, load, ends
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
        self._take_of_piece(self.step.whole.finish, 0)

    def _take_of_piece(self, piece: Piece, number: int) -> None:
        """The leaves that a graph beside the stages reads: no parameters, which go round."""
        here = self.load(self.own[0], number)
        placeholders = piece.graph.find_nodes(op="placeholder")
        for name, node in zip(piece.takes, placeholders, strict=True):
            kind = self._kinds.get(name)
            made = name in self.step.whole.early.gives
            if kind is not None and kind is not LeafKind.PARAM and not made:
                self._take_leaf(name, kind, number, here, node)

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
            self._take_of_piece(early, number)
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
        """What is said to other ranks, the loss, and the gradients that are made of the sums."""
        rest, finish, here = self._ends.round, self.step.whole.finish, self.load(self.own[0], 0)
        known = self._share(rest.totals, self.totals.get)
        held = self.step.tied
        known |= self._share(rest.read, lambda name: self._at_hand.get(held.get(name, name)))
        leaf_of = self.leaf_of(0)
        self._piece(finish, here, lambda name: known.get(name) or leaf_of(name))
        self._share(rest.buffers, self.totals.get)
        gradients = self._reduced()
        gradients = self._add_tied(gradients)
        gradients |= self._share(rest.scalars, gradients.get)
        for name, value in gradients.items():
            self.gradients.update(held_by(value))
            self.gradient_types[name] = tensor_type(value)
        self.did(None)
        self.sums.clear()

    def _reduced(self) -> dict[str, Held]:
        """The gradients of the rank's stages, made of their sums."""
        found: dict[str, Held] = {}
        for stage in self.own:
            piece = self.step.reduces[stage]
            made = self._piece(piece, self.load(stage, 0), self.sums.value)
            found.update(zip(piece.gives, made, strict=True))
        return found

    def _share(self, lies: Lies, known: Callable[[str], Held | None]) -> dict[str, Held]:
        """Values that go round all stages, of which this rank has some."""
        mine = {name: value for name in lies if (value := known(name)) is not None}
        made = self.call(self._ends.share(lies, list(mine)), list(mine.values())) if lies else []
        return dict(zip(lies, made, strict=True))

    def _add_tied(self, gradients: dict[str, Held]) -> dict[str, Held]:
        """The gradients when those of tied copies have come to the parameters, or have left."""
        if not self.step.tied:
            return gradients
        names: list[str] = []
        made = self.call(self._ends.add_tied(list(gradients), names), list(gradients.values()))
        for value in gradients.values():
            self.release(value)
        return dict(zip(names, made, strict=True))

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
