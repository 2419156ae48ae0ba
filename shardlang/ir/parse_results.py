"""What stands behind the nodes of a graph's text: its results, and what the passes found."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from lark import Token, v_args
from torch import fx
from torch.fx.node import Argument

from shardlang.ir.experts.strategies import Strategies, Strategy
from shardlang.ir.graph import ShardError, ShardGraph
from shardlang.ir.layout import Layout
from shardlang.ir.leaf import Result, ResultKind
from shardlang.ir.mesh import Mesh
from shardlang.ir.node import NodeInfo, info, set_info
from shardlang.ir.parse_calls import Functions
from shardlang.ir.parse_clauses import ClauseReader
from shardlang.ir.parse_error import GraphTextError
from shardlang.ir.parse_types import Axes
from shardlang.ir.spelling import layouts_of
from shardlang.ir.text import Stage

Pair = tuple[Result, fx.Node | None]


@v_args(inline=True)
class ResultReader(ClauseReader):
    """Reads results and what the passes found into `graph`."""

    def __init__(self, functions: Functions) -> None:
        super().__init__(functions)
        self.graph = ShardGraph(Mesh(()), fx.Graph(), [], [])
        self.level = Stage.TRACED
        self.ended = False

    def result(self, kind: Token, name: str, node: Token) -> Pair:
        if kind not in set(ResultKind):
            remedy = "a result is an `output`, or the `mutation` of a buffer"
            raise GraphTextError(f"a `{kind}` is not a result", remedy, kind)
        if node == "None":
            return Result(name, ResultKind(kind), torch.float32, Layout(())), None
        value = self.find_node(node)
        tensor = info(value).value
        if not isinstance(tensor, torch.Tensor):
            remedy = f"return one of its results: `picked = {node}[0] : ...`"
            raise GraphTextError(f"`{node}` is not one tensor", remedy, node)
        local = self.level is Stage.PROGRAM
        layout = layouts_of(value)[0] if local else Layout.whole(tensor.shape)
        return Result(name, ResultKind(kind), tensor.dtype, layout), value

    def results(self, *pairs: Pair | None) -> None:
        there = [pair for pair in pairs if pair is not None]
        results = [result for result, _ in there]
        named: set[tuple[ResultKind, str]] = set()
        for result in results:
            if (result.kind, result.name) in named:
                twice = f'{result.kind} "{result.name}"'
                raise GraphTextError(f"two results are `{twice}`", "leave one out")
            named.add((result.kind, result.name))
        loss = self.graph.loss
        if loss is not None and (ResultKind.OUTPUT, loss) not in named:
            remedy = "return it, or correct its name in the line `loss`"
            raise GraphTextError(f"the loss `{loss}` is not one of the results", remedy)
        self.graph.results, self.ended = results, True
        output = self.graph.graph.output(tuple(node for _, node in there))
        set_info(output, NodeInfo())
        self.graph.graph.lint()

    def refused(self, code: Token, message: str, help: str) -> None:
        self.graph.info.refusals.append(ShardError(str(code), message, help=help))

    def checked(self, source: str) -> None:
        self.graph.info.checks.append(source)

    def drawn(self, name: str, order: tuple[int, ...]) -> None:
        if sorted(order) != list(range(len(order))):
            remedy = "write each dim once, counted from 0: `[1, 0]`"
            raise GraphTextError("that is no order of dims", remedy)
        self.graph.info.draw_orders[name] = order

    def recorded(self, name: str, layout: Layout) -> None:
        if name in self.graph.info.layouts:
            raise GraphTextError(f"two layouts of `{name}` are recorded", "leave one out")
        self.graph.info.layouts[name] = layout

    strings = ClauseReader.every

    def prices(self, *pairs: tuple[Strategy, float]) -> dict[Strategy, float]:
        named_once([one for one, _ in pairs])
        return dict(pairs)

    def price(self, name: str, price: Argument) -> tuple[Strategy, float]:
        if not isinstance(price, (int, float)):
            raise GraphTextError("a price is a number of bytes", "write one")
        return strategy(name), price

    def reasons(self, *pairs: tuple[Strategy, str]) -> dict[Strategy, str]:
        named_once([one for one, _ in pairs])
        return dict(pairs)

    def reason(self, name: str, why: str) -> tuple[Strategy, str]:
        return strategy(name), why

    def ways(
        self, names: tuple[str, ...], module: str, axes: Axes, prices: dict[Strategy, float],
        taken: str, closed: dict[Strategy, str] | None,
    ) -> None:  # fmt: skip
        chosen = strategy(taken)
        if chosen not in prices:
            remedy = "take one of those that have one"
            raise GraphTextError(f"the strategy `{taken}` has no price", remedy)
        found = Strategies(names, module, axes, prices, chosen, closed or {})
        self.graph.info.strategies.append(found)


def strategy(name: str) -> Strategy:
    """The strategy that a text calls so."""
    if name not in set(Strategy):
        remedy = "write " + " or ".join(f'"{one}"' for one in Strategy)
        raise GraphTextError(f"there is no strategy `{name}`", remedy)
    return Strategy(name)


def named_once(found: Sequence[Strategy]) -> None:
    """Refuse a list of strategies in which one stands twice."""
    if len(set(found)) < len(found):
        raise GraphTextError("a strategy is named twice", "leave one out")
