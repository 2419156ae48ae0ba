"""What a halo sends: edges to the devices that need them, however many devices there are."""

from __future__ import annotations

from pathlib import Path

import pytest

from shardlang.ir.dim_layout import DimLayout
from shardlang.ir.edges import all_coords, readings
from shardlang.ir.mesh import Axis
from shardlang.ir.reads import Reads
from shardlang.plan import plan_of
from tests.proof.proving import compiled

MODEL = """
class Convolutions(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(8, 8, 3, 1, 1, bias=False)
        self.b = nn.Conv2d(8, 16, 3, 1, 1, bias=False)

    def forward(self, x):
        y = self.b(torch.relu(self.a(x)))
        return {"loss": (y * y).mean()}


class Rolled(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(16, 16, bias=False)

    def forward(self, x):
        y = torch.roll(torch.tanh(self.a(x)), (2, 2), (1, 2))
        return {"loss": (y * x).mean(), "y": y}
"""


def sent(folder: Path, spec: str) -> dict[str, int]:
    """Bytes that the busiest device sends, by collective."""
    found: dict[str, int] = {}
    for row in plan_of(compiled(folder, MODEL, spec)).collectives:
        found[row.op] = found.get(row.op, 0) + row.bytes
    return found


@pytest.mark.parametrize("devices", [4, 8, 16, 32])
def test_a_convolution_sends_as_much_on_any_number_of_devices(tmp_path: Path, devices: int) -> None:
    """A row of 4 images with 8 channels and 32 columns to each neighbour, three times."""
    spec = f"""
    mesh {{ sp = {devices} }}
    model "model.py:Convolutions"
    input x : f32[4, 8, {8 * devices}, 32] [_, _, sp, _]
    """
    found = sent(tmp_path, spec)
    assert found["send_recv"] == 3 * 2 * (4 * 8 * 32) * 4
    assert found.keys() == {"send_recv", "all_reduce"}
    assert sum(found.values()) <= 61_255


def test_a_roll_sends_the_rows_that_it_moves(tmp_path: Path) -> None:
    """Two rows and two columns of a shard of 4 by 16 by 8 by 16, there and back."""
    spec = """
    mesh { a = 2  b = 4 }
    model "model.py:Rolled"
    input x : f32[4, 32, 32, 16] [_, a, b, _]
    output y [_, a, b, _]
    """
    found = sent(tmp_path, spec)
    assert found["send_recv"] == 2 * (4 * 2 * 8 * 16 + 4 * 16 * 2 * 16) * 4
    assert sum(found.values()) <= 47_626


@pytest.mark.parametrize("devices", [4, 8, 32])
def test_a_roll_by_one_sends_one_row_to_one_neighbour(devices: int) -> None:
    dim = DimLayout.shard(3 * devices, (Axis("sp", devices),))
    reads = Reads.of(dim.size, [range(dim.size - 1, dim.size), range(dim.size - 1)])
    for device, one in enumerate(readings(dim, dim, reads, all_coords(dim))):
        before = (device - 1) % devices
        assert one.counts == tuple(int(member == before) for member in range(devices))
        assert one.spans[before] == ((2, 1),)


def test_reads_as_text_and_in_few_runs() -> None:
    windows = [1, *(range(i, i + 4) for i in range(0, 40, 2)), 2, 3, range(6, 2, -1), range(9, 10)]
    reads = Reads.of(43, windows, 1.5)
    assert str(reads) == "reads(43: none 1, 0:4 * 20 + 2, none 5, 6:2:-1, 9:10 with 1.5)"
    assert reads.length == 1 + 80 + 5 + 4 + 1
    assert list(reads.between(83, 7)) == [3, range(6, 2, -1)]
    assert Reads.of(5, [range(2), range(0), range(2, 5)]) == Reads.of(5, [range(5)])
    assert not Reads.of(3, [range(2, 4)]).fits


def test_reads_of_reads_are_reads() -> None:
    """A window of a padded dim reads the dim; two values to fill with are two steps."""
    padded = Reads.of(5, [2, range(5)], 0.5)
    windows = Reads.of(7, [range(4), 1, range(6, 2, -1), range(1, 7, 3)], 0.5)
    made = windows.after(padded)
    assert made == Reads.of(5, [2, range(2), 1, range(4, 0, -1), 1, range(2, 3)], 0.5)
    assert Reads.of(7, [range(3)]).after(padded) == Reads.of(5, [2, range(1)], 0.5)
    assert Reads.of(7, [range(3), 1]).after(padded) is None
