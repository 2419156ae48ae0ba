"""Where a plan says that collectives start and are waited for."""

from __future__ import annotations

import pytest

from shardlang.compiler.whole_step import whole_step
from shardlang.ir.step import is_start
from shardlang.plan.flights import computes, flights_of
from tests.plan.plans import FSDP, STACK, TP, compiled, plan

ACCUMULATED = STACK + "accumulate 2"


@pytest.mark.parametrize("text", [FSDP, TP, ACCUMULATED], ids=["fsdp", "tp", "accumulated"])
def test_rows_say_between_which_ops_a_call_is_in_flight(text: str) -> None:
    """As the graph has it: the op right before the start, and the one right behind the wait."""
    step = whole_step(compiled(text))
    assert step is not None
    order = list(step.step.graph.nodes)
    names = {node.name: place for place, node in enumerate(order)}
    wanted: list[tuple[str, str]] = []
    for start, flight in flights_of(n for n in order if n.op != "output").items():
        first, last = order.index(start), order.index(flight.wait)
        assert flight.beside == tuple(n for n in order[first:last] if computes(n))
        for node, between in ((flight.after, (0, first)), (flight.before, (last, len(order)))):
            if node is not None:
                assert between[0] < names[node.name] < between[1]
        assert flight.after is None or not any(
            map(computes, order[names[flight.after.name] + 1 : first])
        )
        wanted += [flight.ends] if flight.ends is not None else []
    rows = [row.to_json() for row in plan(text).collectives]
    found = [(row["starts_after"], row["waits_before"]) for row in rows if row["phase"] != "update"]
    assert sorted(pair for pair in found if pair != (None, None)) == sorted(wanted)


def test_gathers_of_stored_parameters_are_in_flight_beside_ops() -> None:
    step = whole_step(compiled(FSDP))
    assert step is not None and any(map(is_start, step.step.graph.nodes))
    gathers = [row for row in plan(FSDP).collectives if row.op == "all_gather"]
    assert [row.flight for row in gathers] == [None, ("", "linear_2"), ("", "linear_4")]
