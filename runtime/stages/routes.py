"""What the stages of a pipeline send to one another: which values, where, in which order.

All follows from the schedule and the programs of the stages, so every device knows it before the
step. A link carries values in the order in which they are made, and is received from in that order.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from shardlang.ir.pipeline.action import Action, Work
from shardlang.ir.pipeline.schedule import PipelineSchedule
from shardlang.ir.pipeline.staged import StagedStep

Way = tuple[int, int]
"""From which rank of the pipeline to which."""


@dataclass(frozen=True, slots=True)
class Message:
    """One value of a microbatch on its way from a stage to another.

    Attributes:
        made: the action that makes it.
        read: the first action that reads it.
    """

    value: str
    source: int
    target: int
    microbatch: int
    made: Action
    read: Action


@dataclass(slots=True)
class Routes:
    """What a rank of a pipeline sends and receives.

    Attributes:
        ways: over which ways anything is sent, by any rank; the same everywhere.
        sent: behind each of its actions, what it sends, with the way.
        needed: before each of its actions, what must have arrived, with the way.
        arriving: what comes over each way, in order.
        done: before each of its actions, the messages that have arrived elsewhere by then, in the
            order of the schedule: to wait for these sends holds nobody up.
    """

    ways: list[Way] = field(default_factory=list)
    sent: Mapping[Action, list[tuple[Way, Message]]] = field(default_factory=dict)
    needed: Mapping[Action, list[tuple[Way, Message]]] = field(default_factory=dict)
    arriving: Mapping[Way, list[Message]] = field(default_factory=dict)
    done: Mapping[Action, list[Message]] = field(default_factory=dict)


def routes_of(
    step: StagedStep, schedule: PipelineSchedule, order: Sequence[Action], rank: int
) -> Routes:
    """The routes of one rank.

    Args:
        order: all actions, in an order in which they can be done one after the other; the forwards
            alone where nothing is trained.
    """
    rank_of, place = schedule.rank_of(), {action: i for i, action in enumerate(order)}
    sent, needed = defaultdict(list), defaultdict(list)
    arriving, done = defaultdict(list), defaultdict(list)
    ways: dict[Way, None] = {}
    mine = [action for action in order if rank_of[action.stage] == rank]
    for action in order:
        for message in _made_by(step, schedule, action):
            way = rank_of[message.source], rank_of[message.target]
            if way[0] == way[1] or message.read not in place:
                continue
            ways[way] = None
            if way[0] == rank:
                sent[action].append((way, message))
                after = next((a for a in mine if place[a] > place[message.read]), None)
                if after is not None:
                    done[after].append(message)
            if way[1] == rank:
                arriving[way].append(message)
                needed[message.read].append((way, message))
    return Routes(sorted(ways), sent, needed, arriving, done)


def _made_by(step: StagedStep, schedule: PipelineSchedule, action: Action) -> Iterator[Message]:
    """What an action sends, to stages of its own rank too."""
    stage, number = step.stages[action.stage], action.microbatch
    if action.work is Work.FORWARD:
        for name, targets in stage.gives.items():
            for target in targets:
                read = Action(target, Work.FORWARD, number)
                yield Message(name, action.stage, target, number, action, read)
    elif action.is_backward:
        for name, targets in stage.returns.items():
            for target in targets:
                read = schedule.backward(target, number)
                yield Message(name, action.stage, target, number, action, read)


def within(step: StagedStep, schedule: PipelineSchedule, action: Action) -> list[Message]:
    """What an action makes for other stages of its own rank."""
    rank_of = schedule.rank_of()
    return [
        message
        for message in _made_by(step, schedule, action)
        if rank_of[message.source] == rank_of[message.target]
    ]
