"""What a stage computes in one action, as generated code: a forward, a backward, or half of one."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from torch import fx

from shardlang.ir.pipeline.action import Work
from shardlang.ir.pipeline.stage import StageProgram
from shardlang.ir.pipeline.staged import nodes_of
from shardlang.runtime.groups import Groups
from shardlang.runtime.lanes import lanes
from shardlang.runtime.region import Regions
from shardlang.runtime.step_executor import load_calls


@dataclass(frozen=True, slots=True)
class Part:
    """The code of one action.

    Attributes:
        run: takes the list of the values `takes`, which it empties, and gives those of `gives`.
        takes: values by name that are there before.
        gives: values by name that are read later.
        drops: of `takes`, those that nothing reads after this action.
        later: what can be dropped once the results and gradients of this action are handed out.
        hands: the gradients that are there after it, by name.
    """

    run: Callable[[list[object]], Sequence[object]]
    takes: tuple[str, ...]
    gives: tuple[str, ...]
    drops: frozenset[str]
    later: frozenset[str]
    hands: frozenset[str]

    def __call__(self, values: dict[str, object]) -> None:
        """Run it on the values of a microbatch, of which it drops what nothing reads any more."""
        given = [values.pop(x) if x in self.drops else values[x] for x in self.takes]
        made = self.run(given)
        values.update(zip(self.gives, made, strict=True))

    def let_go(self, values: dict[str, object]) -> None:
        """Drop what was there to be handed out alone."""
        for name in self.later:
            values.pop(name, None)


ROWS = (
    (Work.FORWARD,),
    (Work.FORWARD, Work.BACKWARD),
    (Work.FORWARD, Work.INPUT, Work.WEIGHT),
)
"""What is done with a microbatch of a stage: evaluated, or trained in one of two ways."""


def rows_of(works: Collection[Work]) -> list[tuple[Work, ...]]:
    """What is done with the microbatches of a stage, from the works that its schedule has."""
    asked = set(works)
    return [row for row in ROWS if set(row) == asked or (row[1:] and row[-1] in asked)]


def load_parts(
    stage: StageProgram, works: Collection[Work], groups: Groups, regions: Regions | None
) -> dict[Work, Part]:
    """The code of the actions of a stage. Collective for the devices of the stage.

    Args:
        works: those that its schedule has.
    """
    found: dict[Work, Part] = {}
    streams = lanes(stage.step.graph, groups)
    for row in rows_of(works):
        lives = Lives(stage, row)
        for place, work in enumerate(row):
            if work in found:  # the forward, which is the same however the backward is cut
                continue
            takes, gives = lives.takes(place), lives.gives(place)
            graph, calls = stage.step.graph, lives.rows[place]
            run = load_calls(graph, calls, takes, gives, streams, regions)
            drops = lives.done(place)
            within = drops & set(takes) - lives.out
            found[work] = Part(run, takes, gives, within, drops - within, lives.hands(place))
    return found


class Lives:
    """Which values of a stage are there when, over a row of actions.

    Attributes:
        rows: the calls of each action.
        out: what is handed out, by name.
    """

    def __init__(self, stage: StageProgram, row: Sequence[Work]) -> None:
        self.rows = [nodes_of(stage, work) for work in row]
        self.at = {node: i for i, calls in enumerate(self.rows) for node in calls}
        results, gradients = stage.step.returned
        self.gradients = list(zip(stage.step.gradients, gradients, strict=True)) if row[1:] else []
        self.last: dict[fx.Node, int] = {}
        for node, place in self.at.items():
            for x in node.all_input_nodes:
                self.last[x] = max(place, self.last.get(x, 0))
        for node in results:
            self.last[node] = max(0, self.last.get(node, 0))
        for _, node in self.gradients:
            self.last[node] = max(self._handed(node), self.last.get(node, 0))
        self.out = {node.name for node in (*results, *(node for _, node in self.gradients))}

    def _handed(self, gradient: fx.Node) -> int:
        """Behind which action a gradient is handed out; one that no call makes, the first."""
        return max(1, self.at.get(gradient, 1))

    def takes(self, place: int) -> tuple[str, ...]:
        """What the calls of an action read that it does not make, in the order of reading."""
        read = (x for node in self.rows[place] for x in node.all_input_nodes)
        return tuple(dict.fromkeys(x.name for x in read if self.at.get(x) != place))

    def gives(self, place: int) -> tuple[str, ...]:
        """What an action makes that is handed out or read later."""
        return tuple(
            node.name
            for node in self.rows[place]
            if node.name in self.out or self.last.get(node, -1) > place
        )

    def done(self, place: int) -> frozenset[str]:
        """What nothing reads after an action."""
        return frozenset(x.name for x, last in self.last.items() if last == place)

    def hands(self, place: int) -> frozenset[str]:
        """The gradients that are handed out behind an action, by the names of the step."""
        return frozenset(name for name, x in self.gradients if self._handed(x) == place and place)
