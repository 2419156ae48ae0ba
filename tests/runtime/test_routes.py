"""Rows go to the devices that have their experts, and come back, on real gloo process groups."""

from __future__ import annotations

from pathlib import Path

import pytest
import routes_on_ranks as known
import torch
from spawn import spawn

from shardlang.ir.shards import peers


@pytest.mark.parametrize("processes", [2, 4])
def test_every_row_goes_to_its_expert_and_back(processes: int, tmp_path: Path) -> None:
    found = spawn("routes_on_ranks:every_route", processes, tmp_path)
    mesh = known.LINE if processes == 2 else known.GRID
    cases = [
        (known.route_of(mesh, *split), choice)
        for split in known.SPLITS[mesh]
        for choice in known.CHOICES
        for _ in known.DTYPES
    ]
    for number, (route, choice) in enumerate(cases):
        for rank, results in enumerate(found):
            coord, one = mesh.coord(rank), results[number]
            members = [found[mesh.device(at)][number]["x"] for at in peers(coord, route.axes)]
            want = torch.cat([known.owned(route, coord, x, choice) for x in members])
            assert torch.equal(one["sent"], want), (route, choice, rank)
            assert torch.equal(one["home"], 2 * one["x"])
            assert torch.equal(one["grad"], 2 * (one["x"] + 1))
