"""split_stages: from the step program of a model to one step program for each stage.

A value that another stage reads is sent to that very stage, wherever it stands: a skip connection
needs no stage between. What the backward reads of another stage's forward is sent in the forward,
and kept. A gradient is sent to the stage whose backward reads it; that of a leaf to the stage that
holds the leaf, if another one makes it. Every stage makes the draws of all others too
(`repeat_draws`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace

from torch import fx

from shardlang.ir.accumulated import AccumulatedStep, Piece
from shardlang.ir.leaf import Leaf, LeafKind, Result, ResultKind
from shardlang.ir.node import info, layout_of, set_info, tensor_of
from shardlang.ir.pipeline.stage import StageProgram
from shardlang.ir.pipeline.staged import StagedStep
from shardlang.ir.step import StepProgram
from shardlang.passes.step.repeat_draws import repeat_draws


def split_stages(
    step: StepProgram, stages: int, homes: Mapping[str, int]
) -> tuple[StageProgram, ...]:
    """The programs of all stages; every node must have a stage, but for what cotangents alone make.

    Args:
        homes: by gradient of the step, the stage that holds the leaf.

    Raises:
        ShardError: SH0410, a draw cannot be repeated in other stages.
    """
    splitting = _Splitting(repeat_draws(step, stages), homes)
    return tuple(splitting.stage(number) for number in range(stages))


class _Splitting:
    """What every stage gets and gives.

    Attributes:
        read_in: of every value, the other stages that read it.
        gradients: the stage that holds the leaf of each, its name, and its node.
        holders: of a node, the stages that hold the leaves whose gradient it is.
    """

    def __init__(self, step: StepProgram, homes: Mapping[str, int]) -> None:
        self.step = step
        self.leaf_of = {leaf.node: leaf for leaf in step.leaves}
        results, gradients = step.returned
        self.results = list(zip(step.results, results, strict=True))
        self.gradients = [
            (homes[name], name, n) for name, n in zip(step.gradients, gradients, strict=True)
        ]
        self.holders: dict[fx.Node, set[int]] = {}
        for home, _, node in self.gradients:
            self.holders.setdefault(node, set()).add(home)
        self.stage_of = {node: self._stage_of(node) for node in step.graph.nodes}
        self.read_in: dict[fx.Node, list[int]] = {}
        for node, stage in self.stage_of.items():
            users = {self.stage_of[user] for user in node.users if user.op != "output"}
            users |= self.holders.get(node, set())
            others = sorted(one for one in users if one is not None and one != stage)
            if others and stage is not None:
                self.read_in[node] = others
                _check_way(node, stage, others)

    def _stage_of(self, node: fx.Node) -> int | None:
        """The stage that makes a value; None for what is at hand in all of them."""
        if node.op == "placeholder" and node.name not in self.leaf_of:
            return self._of_cotangent(node)
        stage = info(node).stage
        if stage is None and node.op == "call_function":  # it is made of cotangents alone
            return max(self._of_cotangent(x) for x in node.all_input_nodes)
        return stage

    def _of_cotangent(self, node: fx.Node) -> int:
        """The last stage that reads it: the one that makes the result."""
        users = {s for user in node.users if (s := info(user).stage) is not None}
        given = {node, *(user for user in node.users if info(user).stage is None)}
        return max(users.union(*(self.holders.get(one, ()) for one in given)))

    def stage(self, number: int) -> StageProgram:
        """The program of one stage."""
        own = [n for n in self.step.graph.nodes if self.stage_of[n] == number]
        read = {x for node in own for x in node.all_input_nodes}
        read |= {node for home, _, node in self.gradients if home == number}
        got = [n for n in self.step.graph.nodes if n in read and self.read_in.get(n)
               and number in self.read_in[n]]  # fmt: skip
        given = [n for n in own if n in self.read_in]
        writer = _Writer(self, number)
        return writer.write(own, read, got, given)


def _check_way(node: fx.Node, stage: int, others: Sequence[int]) -> None:
    """Values go to later stages, and gradients to earlier ones."""
    wrong = [one for one in others if (one > stage) is info(node).backward]
    assert not wrong, f"{node} of stage {stage} is read in stage {wrong[0]}, which comes before it"


class _Writer:
    def __init__(self, splitting: _Splitting, number: int) -> None:
        self.split, self.number, self.graph = splitting, number, fx.Graph()
        self.made: dict[fx.Node, fx.Node] = {}

    def write(
        self,
        own: Sequence[fx.Node],
        read: Collection[fx.Node],
        got: Sequence[fx.Node],
        given: Sequence[fx.Node],
    ) -> StageProgram:
        """The stage whose nodes are `own`."""
        step, split = self.split.step, self.split
        placeholders = {n.name: n for n in step.graph.find_nodes(op="placeholder")}
        leaves = [leaf for leaf in step.leaves if self._holds(placeholders[leaf.node], read)]
        values, gradients = _halves(got)
        sent, returned = _halves(given)
        for node in [*(placeholders[leaf.node] for leaf in leaves), *values]:
            self._take(node)
        cotangents = [n for n in own if n.op == "placeholder" and n.name not in split.leaf_of]
        for node in [*cotangents, *gradients]:
            self._take(node)
        for node in own:
            if node.op == "call_function":
                self.made[node] = self.graph.node_copy(node, self.made.__getitem__)
                set_info(self.made[node], info(node))
        results = [(r, n) for r, n in split.results if split.stage_of[n] == self.number]
        results += [(_sent(n), n) for n in sent]
        gives = [(name, n) for home, name, n in split.gradients if home == self.number]
        gives += [(n.name, n) for n in returned]
        self.graph.output(
            (tuple(self.made[n] for _, n in results), tuple(self.made[n] for _, n in gives))
        )
        self.graph.lint()
        seeds = [name for name, n in zip(step.cotangents, self._seeds(), strict=True) if n in own]
        made = StepProgram(
            step.mesh, self.graph, (*leaves, *(_received(n) for n in values)),
            tuple(r for r, _ in results), (*seeds, *(n.name for n in gradients)),
            tuple(name for name, _ in gives), wide=step.wide,
        )  # fmt: skip
        return StageProgram(
            self.number, made,
            {n.name: self._from(n) for n in values}, {n.name: self._to(n) for n in sent},
            {n.name: self._from(n) for n in gradients}, {n.name: self._to(n) for n in returned},
        )  # fmt: skip

    def _holds(self, node: fx.Node, read: Collection[fx.Node]) -> bool:
        """Whether a leaf lies in the stage: its parameters, and what it reads of all others."""
        stage = self.split.stage_of[node]
        return stage == self.number or (stage is None and node in read)

    def _seeds(self) -> list[fx.Node]:
        nodes = self.split.step.graph.find_nodes(op="placeholder")
        return [n for n in nodes if n.name not in self.split.leaf_of]

    def _take(self, node: fx.Node) -> None:
        self.made[node] = self.graph.placeholder(node.name)
        set_info(self.made[node], replace(info(node), stage=self.number))

    def _from(self, node: fx.Node) -> int:
        stage = self.split.stage_of[node]
        assert stage is not None
        return stage

    def _to(self, node: fx.Node) -> tuple[int, ...]:
        return tuple(self.split.read_in[node])


def _halves(nodes: Iterable[fx.Node]) -> tuple[list[fx.Node], list[fx.Node]]:
    """Values and gradients."""
    nodes = list(nodes)
    return [n for n in nodes if not info(n).backward], [n for n in nodes if info(n).backward]


def _received(node: fx.Node) -> Leaf:
    return Leaf(node.name, LeafKind.INPUT, node.name, tensor_of(node).dtype, layout_of(node))


def _sent(node: fx.Node) -> Result:
    return Result(node.name, ResultKind.OUTPUT, tensor_of(node).dtype, layout_of(node))


def staged(step: AccumulatedStep, stages: int) -> StagedStep:
    """The step of a pipeline, from that of one device.

    Raises:
        ShardError: SH0410, a draw cannot be repeated in other stages.
    """
    parts = split_stages(step.main, stages, _homes(step))
    names = [set(part.step.gradients) for part in parts]
    reduces = tuple(_reduce(step.reduce, own) for own in names)
    tied = {leaf.name: leaf.tied for leaf in step.main.leaves if leaf.tied is not None}
    return StagedStep(step, parts, reduces, tied)


def _homes(step: AccumulatedStep) -> dict[str, int]:
    """By part of a gradient, the stage that holds its leaf: there all microbatches add up."""
    at = {n.name: info(n).stage for n in step.main.graph.find_nodes(op="placeholder")}
    stage_of = {leaf.name: at[leaf.node] for leaf in step.main.leaves}
    returned = step.reduce.graph.output_node().args[0]
    assert isinstance(returned, tuple)
    found: dict[fx.Node, int] = {}
    for name, node in zip(step.reduce.gives, returned, strict=True):
        stage = stage_of[name]
        assert stage is not None, f"{name} lies in no stage"
        found[node] = stage
    for node in reversed(step.reduce.graph.nodes):
        if node in found:
            found.update(dict.fromkeys(node.all_input_nodes, found[node]))
    takes = step.reduce.graph.find_nodes(op="placeholder")
    return {name: found[node] for name, node in zip(step.reduce.takes, takes, strict=True)}


def _reduce(piece: Piece, own: Collection[str]) -> Piece:
    """The part of the reductions that takes the sums of one stage.

    Raises:
        AssertionError: a gradient is made of sums of several stages.
    """
    takes = dict(zip(piece.takes, piece.graph.find_nodes(op="placeholder"), strict=True))
    graph, made = fx.Graph(), dict[fx.Node, fx.Node]()
    for name in (name for name in piece.takes if name in own):
        made[takes[name]] = graph.placeholder(takes[name].name)
        set_info(made[takes[name]], info(takes[name]))
    for node in piece.graph.nodes:
        there = [x in made for x in node.all_input_nodes]
        if node.op == "call_function" and any(there):
            assert all(there), f"{node} is made of sums of several stages"
            made[node] = graph.node_copy(node, made.__getitem__)
            set_info(made[node], info(node))
    returned = piece.graph.output_node().args[0]
    assert isinstance(returned, tuple)
    pairs = [(name, n) for name, n in zip(piece.gives, returned, strict=True) if n in made]
    graph.output(tuple(made[n] for _, n in pairs))
    given = tuple(name for name in piece.takes if name in own)
    return Piece(graph, given, tuple(name for name, _ in pairs))
