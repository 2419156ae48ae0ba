"""Each device reads its own rows: together they read every sample once in an epoch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from shardlang.ir.dim_layout import DimLayout
from shardlang.ir.layout import Layout
from shardlang.ir.mesh import Axis, Mesh
from shardlang.runtime.data import Order, SampleStream, TokenSamples, TokenWriter, open_tokens
from shardlang.runtime.data.rows import DeviceReader, MicrobatchReader
from shardlang.runtime.groups import Groups
from tests.data.given import Input

S = 8
SAMPLES = 101


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Tokens of which each window begins with its own number, and a rest."""
    with TokenWriter(tmp_path / "tokens.bin", 1000, "") as writer:
        for number in range(SAMPLES):
            writer.add([number, *range(900, 900 + S - 1)])
        writer.add([5, 5])
        writer.commit()
    return tmp_path / "tokens.bin"


class Local(DeviceReader):
    """Gives the shards themselves: no processes are there to make tensors of them."""

    def give(self, read: Mapping[str, Tensor], size: int) -> dict[str, object]:
        return dict(read)


def of_rank(path: Path, mesh: Mesh, layout: Layout, rank: int, ready: int = 0) -> SampleStream:
    """What one device of a mesh reads."""
    shape = (layout.shape[0], S)
    samples = TokenSamples(open_tokens(path), (Input("input_ids", shape),), 1000)
    lies: Any = SimpleNamespace(layout=layout, groups=SimpleNamespace(coord=mesh.coord(rank)))
    order = Order(len(samples), seed=11)
    return SampleStream(samples, layout.shape[0], order, Local({"input_ids": lies}), ready)


def numbers(shard: object) -> list[list[int]]:
    """The rows of a shard."""
    assert isinstance(shard, Tensor)
    found: list[list[int]] = shard.tolist()
    return found


def test_three_epochs_on_four_then_two_then_three_ranks(path: Path) -> None:
    """Restarts in the middle of epochs, other meshes and batches: every sample once an epoch."""
    seen: list[int] = []
    state: dict[str, object] | None = None
    for devices, batch, steps in ((4, 13, 9), (2, 8, 11), (3, 7, 14)):
        mesh = Mesh((Axis("dp", devices),))
        layout = Layout((DimLayout.shard(batch, mesh.axes), DimLayout.whole(S)))
        ranks = [of_rank(path, mesh, layout, rank, ready=2) for rank in range(devices)]
        for one in ranks:
            if state is not None:
                one.load_state_dict(state)
        for _ in range(steps):
            shards = [next(one)["input_ids"] for one in ranks]
            seen += [int(row[0]) for shard in shards for row in numbers(shard)]
        states = [one.state_dict() for one in ranks]
        assert all(one == states[0] for one in states)
        state = states[0]
        for one in ranks:
            one.close()
    assert len(seen) == 9 * 13 + 11 * 8 + 14 * 7 == 303 == 3 * SAMPLES
    for epoch in range(3):
        assert sorted(seen[epoch * SAMPLES : (epoch + 1) * SAMPLES]) == list(range(SAMPLES))


def test_what_a_device_reads_is_its_shard_of_the_whole_batch(path: Path) -> None:
    """Rows over one axis, tokens over another, uneven both."""
    mesh = Mesh((Axis("dp", 2), Axis("sp", 3)))
    dp, sp = mesh.axes
    layout = Layout((DimLayout.shard(5, (dp,)), DimLayout.shard(S, (sp,))))
    plain = Layout.whole((5, S))
    whole = next(of_rank(path, mesh, plain, 0))["input_ids"]
    assert isinstance(whole, Tensor)
    for rank in range(6):
        at = mesh.coord(rank)
        mine = next(of_rank(path, mesh, layout, rank))["input_ids"]
        rows, columns = (dim.indices(at) for dim in layout.dims)
        assert isinstance(mine, Tensor) and torch.equal(mine, whole[rows][:, columns])


def test_rows_of_microbatches_alone_are_read(path: Path) -> None:
    micro, dp = Axis("micro", 2), Axis("dp", 2)
    groups = Groups(Mesh((dp,)), 0, torch.device("cpu"))
    layout = Layout((DimLayout.shard(6, (micro, dp)), DimLayout.whole(S)))
    samples = TokenSamples(open_tokens(path), (Input("input_ids", (6, S)),), 1000)
    numbers = np.array([50, 51, 52, 53, 54, 55])
    filled = []
    for rank in range(2):
        coords = [{"micro": i, "dp": rank} for i in range(2)]
        reader = MicrobatchReader({"input_ids": layout}, coords, groups)
        made = reader.read(samples, numbers)["input_ids"]
        assert made.shape == (6, S)
        filled.append([row for row in range(6) if int(made[row, 1]) == 900])
        assert [int(made[row, 0]) for row in filled[-1]] == [50 + row for row in filled[-1]]
    assert filled == [[0, 1, 3, 4], [2, 5]]
