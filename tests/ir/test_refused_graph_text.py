"""Texts that are no graph: one error each, with the line, a caret and a remedy."""

from __future__ import annotations

import cProfile

import pytest

from shardlang.passes.graph_text import GraphTextError, read_graph

HEAD = "graph split\nmesh dp = 2 data, tp = 3\n"
LEAVES = 'w = param "w" trainable : f32[10@tp, 6]\nx = input "x" : f32[7@dp, 6]\n'
END = 'return output "y" x\n'


def fault(text: str) -> GraphTextError:
    with pytest.raises(GraphTextError) as caught:
        read_graph(text)
    assert caught.value.help
    assert "Traceback" not in str(caught.value)
    return caught.value


CASES = [
    # names
    ("y = linear(x, v) : f32[7@dp, 10@tp]", 15, "no node above is called `v`"),
    ("w = neg(x) : f32[7@dp, 6]", 1, "two nodes are called `w`"),
    ("class = neg(x) : f32[7@dp, 6]", 1, "`class` cannot be the name of a node"),
    ("é = neg(x) : f32[7@dp, 6]", 1, "`é` cannot stand here"),
    ('v = param "w" : f32[10@tp, 6]', 5, 'two leaves are `param "w"`'),
    ('v = output "w" : f32[10, 6]', 5, "`output` is not a kind of leaf"),
    # ops and functions
    ("y = linaer(x, w) : f32[7@dp, 10@tp]", 5, "there is no op `linaer`"),
    ("y = add.Tenser(x, x) : f32[7@dp, 6]", 5, "there is no op `add.Tenser`"),
    ("y = no::such(x) : f32[7@dp, 6]", 5, "there is no op `no::such`"),
    ("y = rules.local:max(x) : f32[7@dp, 6]", 5, "there is no function `rules.local:max`"),
    ("y = cli.run:command(x) : f32[7@dp, 6]", 5, "there is no function `cli.run:command`"),
    # arguments
    ("y = neg() : f32[7@dp, 6]", 5, "`neg` is not called so: `self` is missing"),
    ("y = neg(x, x) : f32[7@dp, 6]", 5, "it takes 1 arguments without a name"),
    ("y = neg(x, dim=1) : f32[7@dp, 6]", 5, "it has no argument `dim`"),
    ("y = sum.dim_IntList(x, [1], dim=[1]) : f32[7@dp]", 5, "`dim` is given twice"),
    ("y = sum.dim_IntList(x, dim=[1], dim=[0]) : f32[7@dp]", 33, "`dim` is given twice"),
    ("y = sum.dim_IntList(x, dim=[1], True) : f32[7@dp]", 5, "follows `dim`"),
    ('y = neg("x") : f32[7@dp, 6]', 16, "`neg` cannot be called so: "),
    ("y = add.Tensor(x, w) : f32[7@dp, 6]", 24, "`add.Tensor` cannot be called so: "),
    ("y = to.dtype(x, torch.nn) : f32[7@dp, 6]", 17, "there is no `torch.nn`"),
    ('y = neg(x, device("moon")) : f32[7@dp, 6]', 12, "there is no device `moon`"),
    ("y = neg(x)[0] : f32[7@dp, 6]", 11, "`[` cannot stand here"),
    ("y = x[0] : f32[6]", 5, "`x` has no result 0 to pick"),
    # types
    ("y = neg(x) : f31[7@dp, 6]", 14, "no dtype is called `f31`"),
    ("y = neg(x) : f64[7@dp, 6]", 14, "`y` is f32[7, 6], not as its type says"),
    ("y = neg(x) : f32[7@dp, 5]", 14, "`y` is f32[7, 6], not as its type says"),
    ("y = neg(x) : (f32[7@dp, 6], f32[7@dp, 6])", 15, "`y` is f32[7, 6], not as its type says"),
    ("y = neg(x) : none", 1, "`y` is f32[7, 6], not as its type says"),
    ("y = neg(x) : f32[-7, 6]", 18, "a dim has no size of -7"),
    (f"y = neg(x) : f32[{10**40}, 6]", 18, "the number is too large"),
    ('v = input "v" : none', 1, "the leaf `v` is not one tensor"),
    # layouts
    ("y = linear(x, w) : f32[7@dp, 10@ep]", 33, "the mesh has no axis `ep`"),
    ("y = neg(x) : f32[7@dp, 6@dp]", 17, "the layout names the axis `dp` twice"),
    ("y = neg(x) : f32[7@dp, 6] +dp", 17, "the layout names the axis `dp` twice"),
    ("y = neg(x) : f32[7@dp, 6] ~tp", 14, "`y` lies as [7@dp, 6], not as its type says"),
    ("y = linear(x, w) : f32[7@dp, 10@tp] +tp", 23, "names the axis `tp` twice"),
    ('v = param "v" : f32[10@tp(3), 6]', 21, "10 cannot be packed in shares of 3"),
    # reshards
    ("y = all_gather[tp](w) : f32[10@tp, 6]", 5, "`all_gather` is a change by permute"),
    ("y = all_reduce[dp](w) : f32[10@tp, 6]", 5, "no reshard leads from I to I over `dp`"),
    ("y = all_gather[tp](3) : f32[10, 6]", 5, "`all_gather` changes the layout of a tensor"),
    ("y = all_gather[tp](w, x) : f32[10, 6]", 5, "`all_gather` is not called so"),
    ("y = all_gather[tp](w) : f32[9, 6]", 5, "`all_gather` changes no shapes"),
    ("y = all_gather[tp](w) : f64[10, 6]", 25, "`y` is f32[10, 6], not as its type says"),
    # clauses
    ("y = neg(x) : f32[7@dp, 6] split q: 7", 27, "the op has no factor `q` of 7"),
    ("y = neg(x) : f32[7@dp, 6] split d0: 8", 27, "the op has no factor `d0` of 8"),
    ("y = neg(x) : f32[7@dp, 6] split d0: 7@dp split d1: 6", 42, "`split` is said twice"),
    ("y = neg(x) : f32[7@dp, 6] passes tp(1)", 27, "the op has no such operand"),
    ("y = neg(x) : f32[7@dp, 6] notation 1", 27, "the op has no notation 1"),
    ("y = neg(x) : f32[7@dp, 6] from [7] to [7]", 27, "`from` says nothing here"),
    ("y = neg(x) : f32[7@dp, 6] labelled", 27, "`labelled` says nothing here"),
    ("y = neg(x) : f32[7@dp, 6] gradient no_gradient", 1, "exclude each other"),
    ("y = neg(x) : f32[7@dp, 6] stated [7@dp]", 27, "the stated layout has another shape"),
    ("y = neg(x) : f32[7@dp, 6] strides [1]", 27, "the strides are not those of the results"),
    ('y = neg(x) : f32[7@dp, 6] constant "one"', 27, "a constant is a number"),
    ('y = neg(x) : f32[7@dp, 6] because dp "guessed" "x"', 27, "`guessed` is not a reason"),
    # form
    ("y = neg(x) ; f32[7@dp, 6]", 12, "`;` cannot stand here"),
    ("y = neg(x) :", 13, "the line ends too early"),
    ('v = input "\\q" : f32[7]', 11, "the text in quotes cannot be read"),
    (f"y = neg({'[' * 40}x{']' * 40}) : f32[7@dp, 6]", 24, "brackets nest more than 16 deep"),
    (f"y = neg({'[' * 99999}", 24, "brackets nest more than 16 deep"),
    ("random fast", 1, "`random fast` stands in the wrong place"),
    ("graph split", 1, "`graph` cannot stand here"),
    ('return output "y" v', 19, "no node above is called `v`"),
    ('return output "y" x, output "y" w', 1, 'two results are `output "y"`'),
    ('return param "y" x', 8, "a `param` is not a result"),
]  # fmt: skip
"""A line behind the leaves, the column of the caret, and what is said."""


@pytest.mark.parametrize("line, column, said", CASES)
def test_a_line_is_refused(line: str, column: int, said: str) -> None:
    found = fault(f"{HEAD}{LEAVES}{line}\n{END}")
    assert said in found.message
    assert (found.line, found.place.column) == (5, column)


@pytest.mark.parametrize(
    "text, line, said",
    [
        ("", 1, "the text ends before its results"),
        (HEAD + LEAVES, 5, "the text ends before its results"),
        ("grahp split\n", 1, "cannot stand here"),
        ("graph split\n" + LEAVES, 2, "cannot stand here"),
        ("graph\nmesh dp = 2, dp = 3\n", 2, "two axes are called `dp`"),
        ("graph\nmesh dp = 0\n", 2, "the axis `dp` has no devices"),
        (f'{HEAD}loss "z"\n{LEAVES}{END}', 6, "the loss `z` is not one of the results"),
        (f"{HEAD}{LEAVES}{END}y = neg(x) : f32[7@dp, 6]", 6, "cannot stand here"),
        ('graph\nmesh dp = 2\nx = input "x" : f32[7@dp]\n', 3, "lies as [7], not as its type"),
        ('program\nmesh dp = 2\nx = input "x" : f32[7@dp]\ny = neg(x) : f32[7]\n', 4, "not as its"),
        (f'{HEAD}{LEAVES}{END}layout "x" [7]\nlayout "x" [7]', 7, "two layouts of `x`"),
    ],
)  # fmt: skip
def test_a_text_is_refused(text: str, line: int, said: str) -> None:
    found = fault(text)
    assert said in found.message
    assert found.line == line


def test_the_error_shows_the_place_and_says_what_to_do() -> None:
    text = f"{HEAD}{LEAVES}y = neg(x) : f32[7@dp, 6@ep]\n{END}"
    assert str(fault(text)) == (
        "line 5, column 26: the mesh has no axis `ep`\n"
        "    y = neg(x) : f32[7@dp, 6@ep]\n"
        "                             ^^\n"
        "  help: its axes are `dp`, `tp`"
    )


def test_the_overloads_of_an_op_are_named() -> None:
    found = fault(f"{HEAD}{LEAVES}y = add.Tenser(x, x) : f32[7@dp, 6]\n{END}")
    assert found.help.startswith("its overloads are `add.Tensor`")


def test_a_long_line_is_cut() -> None:
    line = f"y = neg(x) : f32[7@dp, 6] in {'m' * 500!r}"
    assert max(map(len, str(fault(f"{HEAD}{LEAVES}{line}\n")).splitlines())) < 200


def test_reading_makes_calls_in_proportion_to_the_text() -> None:
    def count(lines: int) -> int:
        calls = [f"y{i} = neg(x) : f32[7@dp, 6]" for i in range(lines)]
        profile = cProfile.Profile()
        profile.runcall(read_graph, "\n".join([HEAD + LEAVES, *calls, END]))
        return sum(entry.callcount for entry in profile.getstats())

    count(100)
    assert count(800) < 4.1 * count(200)
