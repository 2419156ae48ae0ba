"""The bytes of a compiled XLA program, read from its text."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.gspmd.hlo import Program, Sent, arrays_of, members

TEXT = (Path(__file__).parent.parent / "fixtures" / "partitioned.hlo").read_text()

SENT = [
    # in a loop of three turns: rows of 16 * 8 * 4 bytes over 4 devices; two sums over 2
    Sent("all-gather", 4, 3, 3 * 512 * 3 // 4),
    Sent("all-reduce", 2, 3, 3 * (512 + 12)),
    # sums of 8 * 16 * 4 bytes over 4 devices: one of which slices are read, one read whole as
    # well, and two in one call, each as it is read
    Sent("reduce-scatter", 4, 1, 512 * 3 // 4),
    Sent("all-reduce", 4, 1, 2 * 512 * 3 // 4),
    Sent("all-reduce", 4, 1, 3 * 512 * 3 // 4),
    # a scatter's array is the part of one device, a gather's the whole
    Sent("reduce-scatter", 4, 1, 512 * 3 // 4),
    Sent("all-to-all", 4, 1, 128 * 3 // 4),
    Sent("all-gather", 2, 1, 256 // 2),
    # whoever sends to itself sends nothing
    Sent("collective-permute", 8, 1, 32),
    Sent("collective-permute", 8, 1, 0),
    # of two branches the one that sends more
    Sent("all-reduce", 8, 1, 2 * 128 * 7 // 8),
]


def test_every_collective_is_counted_as_often_as_it_runs_and_as_what_is_read() -> None:
    assert Program(TEXT, 8).sent() == SENT


def test_a_sum_read_by_the_root_or_by_larger_slices_is_an_all_reduce() -> None:
    larger = TEXT.replace("f32[2,16]{1,0} dynamic-slice(", "f32[4,16]{1,0} dynamic-slice(")
    assert Program(larger, 8).sent()[2] == Sent("all-reduce", 4, 1, 2 * 512 * 3 // 4)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (TEXT.replace('{"n":"3"}', '{"n":"?"}'), "the turns of the loop %loop are not known"),
        (TEXT.replace(" all-to-all(", " ragged-all-to-all("), "`ragged-all-to-all` is not counted"),
        (TEXT.replace("replica_groups={}", "replica_groups=@m"), "no groups are read in"),
        ("HloModule empty", "no ENTRY in the text"),
    ],
)
def test_what_cannot_be_counted_is_refused(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Program(text, 8).sent()


def test_groups_in_all_notations() -> None:
    assert members("replica_groups={{0,2,4},{1,3,5}}, dimensions={0}", 6) == 3
    assert members("replica_groups=[1,6]<=[6], dimensions={0}", 6) == 6
    assert members("replica_groups=mesh['a'=2,'b'=3] {'a','b'}, dimensions={0}", 6) == 6


def test_arrays_of_all_dtypes() -> None:
    assert arrays_of("(pred[3]{0}, f8e4m3fn[2], c64[2,2]{1,0}, s32[])") == (
        (1, 3), (1, 2), (8, 4), (4, 1),
    )  # fmt: skip
