"""Timelines whose transfers take time, and the time of nodes: worked out by hand."""

from __future__ import annotations

import pytest
from torch import fx

from shardlang.cost.clock import seconds_of_nodes
from shardlang.cost.timeline import Shipment, alike, timeline
from shardlang.ir.pipeline.action import Action
from shardlang.ir.pipeline.schedule import PipelineSchedule
from shardlang.ir.step import Stream, apply_collective, start_collective, wait_collective
from shardlang.passes.schedules.plain import gpipe, one_f_one_b


def shipments(schedule: PipelineSchedule, seconds: float) -> list[Shipment]:
    """One from stage to stage for each microbatch, forward and backward."""
    found: list[Shipment] = []
    for number in range(schedule.microbatches):
        for stage in range(schedule.stages - 1):
            pair = (stage, "F", stage + 1), (stage + 1, "B", stage)
            for source, work, target in pair:
                made, read = (Action.parse(f"{s}{work}{number}") for s in (source, target))
                found.append(Shipment((source, target), made, read, seconds))
    return found


def begins(schedule: PipelineSchedule, transfers: list[Shipment]) -> list[list[float]]:
    """When the actions of each rank begin, where a forward takes 1 and a backward 2."""
    spans = timeline(schedule, alike, transfers).spans
    return [[spans[action].begin for action in row] for row in schedule.ranks]


def test_a_transfer_begins_when_its_value_is_made_and_is_waited_for_where_it_is_read() -> None:
    made = gpipe(2, 2)
    assert begins(made, shipments(made, 0.5)) == [[0, 1, 6, 8], [1.5, 2.5, 3.5, 5.5]]
    assert timeline(made, alike, shipments(made, 0.5)).makespan == 10
    assert timeline(made, alike, shipments(made, 0.0)) == timeline(made, alike, shipments(made, 0))
    assert begins(made, shipments(made, 0)) == begins(made, [])


def test_transfers_over_one_way_follow_one_another() -> None:
    """Those of the forwards go from 1 to 4 and from 4 to 7; the gradients from 10 and from 13."""
    made = gpipe(2, 2)
    assert begins(made, shipments(made, 3)) == [[0, 1, 13, 16], [4, 7, 8, 10]]


def test_a_receive_is_posted_when_the_action_before_begins() -> None:
    """The second forward's value is made at 2, and its receive is posted at 6."""
    made = one_f_one_b(2, 3)
    assert [str(action) for action in made.ranks[1]] == ["1F0", "1B0", "1F1", "1B1", "1F2", "1B2"]
    assert begins(made, shipments(made, 4))[1][:3] == [5, 6, 10]


def test_an_action_waits_for_every_value_that_it_reads() -> None:
    """The last stage reads a value of the first one too."""
    made = gpipe(3, 1)
    skip = Shipment((0, 2), Action.parse("0F0"), Action.parse("2F0"), 10)
    assert begins(made, [*shipments(made, 0.5), skip])[2][0] == 11


def test_waits_for_transfers_are_part_of_the_bubble() -> None:
    made = gpipe(2, 2)
    assert timeline(made, alike).bubble == pytest.approx(1 / 2)
    assert timeline(made, alike, shipments(made, 0.5)).bubble == pytest.approx(2 * 10 / 12 - 1)


def nodes() -> dict[str, fx.Node]:
    """`a`, then two collectives of one stream, `b` beside them, and `c` behind both waits."""
    graph = fx.Graph()
    found: dict[str, fx.Node] = {}

    def add(name: str, target: object, *args: object) -> fx.Node:
        found[name] = graph.create_node("call_function", target, args, name=name)  # type: ignore[arg-type]
        return found[name]

    x = graph.placeholder("x")
    first = add("a", abs, x)
    one = add("one", start_collective, first, None, Stream.GATHERS)
    two = add("two", start_collective, first, None, Stream.GATHERS)
    add("b", abs, first)
    add("c", abs, add("wait_one", wait_collective, one), add("wait_two", wait_collective, two))
    return found


def seconds(computing: dict[str, float], sending: dict[str, float]) -> float:
    """How long all nodes take; those that are not named take no time."""
    return seconds_of_nodes(
        nodes().values(),
        lambda node: computing.get(node.name, 0.0),
        lambda node: sending.get(node.name, 0.0),
    )


def test_collectives_are_in_flight_until_they_are_waited_for() -> None:
    assert seconds({"a": 1, "b": 5, "c": 1}, {"one": 2, "two": 2}) == 7
    assert seconds({"a": 1, "b": 3, "c": 1}, {"one": 2, "two": 2}) == 6
    assert seconds({"c": 1}, {"one": 2, "two": 2}) == 5


def test_a_collective_that_is_not_started_is_waited_for_at_once() -> None:
    graph = fx.Graph()
    sent = graph.call_function(apply_collective, (graph.placeholder("x"), None))
    beside = graph.call_function(abs, (sent,))
    assert seconds_of_nodes([sent, beside], lambda _: 1.0, lambda _: 2.0) == 3
