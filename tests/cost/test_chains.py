"""The price of a chain against the reshards that splitting it really needs, over many devices."""

from __future__ import annotations

from shardlang.cost.chains import alone_bytes, chain_bytes, product_worth
from shardlang.cost.ring import sent_bytes
from shardlang.ir.dim_layout import DimLayout
from shardlang.ir.layout import Layout
from shardlang.ir.mesh import Axis
from shardlang.ir.reshard import Reshard

MEMBERS = 8
T = Axis("t", MEMBERS)
ROWS, WIDE, NARROW = 24, 40, 16

TRAINED = frozenset((T,))


def whole(size: int, partial: bool = False, varying: bool = False) -> Layout:
    """A matrix of 24 rows on every device, as a sum or with a gradient to be summed."""
    dims = DimLayout.whole(ROWS), DimLayout.whole(size)
    return Layout(dims, TRAINED if partial else frozenset(), TRAINED if varying else frozenset())


def split(size: int) -> Layout:
    """The same by columns."""
    return Layout((DimLayout.whole(ROWS), DimLayout.shard(size, (T,))))


def both_ways(*reshards: Reshard) -> int:
    """Bytes that reshards send in float32, forward and backward."""
    return sum(
        sent_bytes(reshard.forward, 4) + sent_bytes(reshard.adjoint, 4) for reshard in reshards
    )


REDUCE = Reshard((T,), whole(NARROW, partial=True), whole(NARROW))
"""Behind a product that sums over the split side."""
VARY = Reshard((T,), whole(NARROW), whole(NARROW, varying=True))
"""Before a product that does not: its gradient is all-reduced."""
GATHER = Reshard((T,), split(WIDE), whole(WIDE, varying=True))
SLICE = Reshard((T,), whole(WIDE), split(WIDE))

SMALL, LARGE = ROWS * NARROW * 4, ROWS * WIDE * 4


def of_many(limit: int) -> int:
    """What one of eight sends where one of very many sends `limit`."""
    return limit * (MEMBERS - 1) // MEMBERS


def test_a_chain_from_one_product_to_the_next() -> None:
    """Megatron's pair: one all-reduce forward, one backward, nothing between."""
    assert of_many(chain_bytes([SMALL], [SMALL], [], [])) == both_ways(REDUCE, VARY)


def test_a_slice_is_gathered_backward() -> None:
    assert of_many(chain_bytes([], [], [], [LARGE])) == both_ways(SLICE)


def test_a_gather_in_the_midst_counts_twice() -> None:
    assert of_many(chain_bytes([], [], [LARGE], [])) == 2 * both_ways(GATHER)


def test_a_matrix_alone() -> None:
    """What it moves, and its result once more."""
    by_columns = alone_bytes(LARGE, SMALL, sums=False) - LARGE
    assert of_many(by_columns) == both_ways(VARY) + sent_bytes(GATHER.forward, 4)
    by_rows = alone_bytes(SMALL, LARGE, sums=True) - SMALL
    assert of_many(by_rows) == both_ways(REDUCE, SLICE)


def test_the_worth_of_a_product_is_its_split_side_summed_there_and_back() -> None:
    """24 rows times a matrix of 16 split columns: two all-reduces of its result."""
    assert product_worth(24.0, NARROW, 4) * (MEMBERS - 1) / MEMBERS == 2 * both_ways(REDUCE)
