"""assign_stages: which stage of a pipeline computes a node, and which holds a parameter.

The spec says it of modules. Every other op follows:

- One that reads what a stage makes belongs to the last of these stages.
- One that is made of parameters and inputs, such as an embedding, belongs to the first stage that
  reads it.
- One that is made of inputs alone, such as a mask or a table of positions, is cheap and is made in
  every stage that reads it. A draw is made once.

A parameter lies in the stage that reads it. One that several stages read, a tied one, becomes a
leaf for each of them.
"""

from __future__ import annotations

from dataclasses import replace

from torch import fx

from shardlang.ir.graph import ShardError, ShardGraph, constrain
from shardlang.ir.leaf import Leaf, LeafKind
from shardlang.ir.node import info, set_info
from shardlang.ir.pipeline.split import Split
from shardlang.rules.call import Call
from shardlang.rules.registry import find


def assign_stages(graph: ShardGraph) -> None:
    """Give every op and parameter its stage, if the model is split into stages.

    Raises:
        ShardError: SH0313, a value would go back to an earlier stage, or a stage computes nothing.
    """
    if graph.split is not None:
        _Assigning(graph, graph.split).run()


class _Assigning:
    """Stages while they are found.

    Attributes:
        of: the stage of every op that has one.
        anywhere: ops that are made in every stage that reads them.
    """

    def __init__(self, graph: ShardGraph, split: Split) -> None:
        self.graph, self.split = graph, split
        self.of: dict[fx.Node, int] = {}
        self.anywhere: set[fx.Node] = set()
        self.params = {n for n, leaf in graph.placeholders() if leaf.kind is LeafKind.PARAM}

    def run(self) -> None:
        """Ops in order, then in reverse, then parameters."""
        nodes = [node for node in self.graph.graph.nodes if node.op == "call_function"]
        made_of_params = set(self.params)
        for node in nodes:
            if any(x in made_of_params for x in node.all_input_nodes):
                made_of_params.add(node)
            self._forward(node, node in made_of_params)
        for node in reversed(nodes):
            self._backward(node)
        self._check_filled()
        for node in nodes:
            if node in self.of:
                set_info(node, replace(info(node), stage=self.of[node]))
        self._leaves()

    def _forward(self, node: fx.Node, trained: bool) -> None:
        """The stage that is stated, or that of what is read."""
        before = [self.of[x] for x in node.all_input_nodes if x in self.of]
        stated = self.split.of(info(node).module)
        if stated is not None and before and max(before) > stated:
            raise self._backwards(node, stated)
        known = before if stated is None else [*before, stated]
        if known:
            self.of[node] = max(known)
        elif self._is_stated_of_leaf(node) or not (trained or _draws(node)):
            self.anywhere.add(node)

    def _backwards(self, node: fx.Node, stated: int) -> ShardError:
        """A value that would go to a stage before the one that makes it."""
        made = self._maker(node)
        return ShardError(
            "SH0313",
            f"`{self.split.owner(info(node).module)}` of stage {stated} reads what"
            f" `{self.split.owner(info(made).module)}` of stage {self.of[made]} makes",
            node=node,
            help="list the modules in the order in which the model runs them, and what runs between"
            " two calls of one module in its stage: values go to later stages",
        )

    def _maker(self, node: fx.Node) -> fx.Node:
        """The op of a stated module through which an op belongs to the last stage that it reads."""
        while True:
            node = max((x for x in node.all_input_nodes if x in self.of), key=self.of.__getitem__)
            if self.split.of(info(node).module) == self.of[node]:
                return node

    def _check_filled(self) -> None:
        """Every stage computes something."""
        empty = sorted(set(range(self.split.stages)) - set(self.of.values()))
        if empty:
            names = [f"`{name}`" for name, at in self.split.stage_of.items() if at == empty[0]]
            raise ShardError(
                "SH0313",
                f"stage {empty[0]} computes nothing: the model runs no {' and no '.join(names)}",
                help="give it a module that the model runs",
            )

    def _is_stated_of_leaf(self, node: fx.Node) -> bool:
        """Whether a node only says how a parameter lies where it is read."""
        sources = self.params | self.anywhere
        return node.target is constrain and all(x in sources for x in node.all_input_nodes)

    def _backward(self, node: fx.Node) -> None:
        """The stage of what reads a node that has none; one for each where it is made anywhere."""
        if node in self.of:
            return
        stages = sorted({self.of[user] for user in node.users if user in self.of}) or [0]
        self.of[node] = stages[0]
        if node in self.anywhere:
            for stage in stages[1:]:
                self._copy(node, stage)

    def _copy(self, node: fx.Node, stage: int) -> None:
        graph = self.graph.graph
        with graph.inserting_after(node):
            copy = graph.node_copy(node, lambda x: x)
        set_info(copy, replace(info(node), stage=stage))
        self.of[copy] = stage
        for user in [one for one in node.users if self.of.get(one) == stage]:
            user.replace_input_with(node, copy)

    # leaves

    def _leaves(self) -> None:
        """The stage of every parameter; one that several stages read becomes several leaves."""
        leaves = dict(self.graph.placeholders())
        made: list[Leaf] = []
        for node, leaf in leaves.items():
            made.append(leaf)
            if leaf.kind is not LeafKind.PARAM:
                continue
            stages = sorted({info(user).stage or 0 for user in node.users}) or [0]
            set_info(node, replace(info(node), stage=stages[0]))
            made += [self._tied(node, leaf, stage) for stage in reversed(stages[1:])][::-1]
        self.graph.leaves[:] = made

    def _tied(self, node: fx.Node, leaf: Leaf, stage: int) -> Leaf:
        """The leaf of a tied parameter in a later stage."""
        graph = self.graph.graph
        with graph.inserting_after(node):
            other = graph.placeholder(f"{node.name}_stage_{stage}")
        set_info(other, replace(info(node), stage=stage))
        for user in [one for one in node.users if info(one).stage == stage]:
            user.replace_input_with(node, other)
        return replace(leaf, name=f"{leaf.name}@{stage}", node=other.name, tied=leaf.name)


def _draws(node: fx.Node) -> bool:
    """Whether an op draws random numbers."""
    rule = find(node.target)
    return rule is not None and rule.draws(Call(node))
