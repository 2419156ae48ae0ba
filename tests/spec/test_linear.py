"""The work that a spec makes grows as its text does, whatever its statements are.

Lines of Python that run are counted, so that a loaded machine changes nothing; of comparisons of
words, which run below them, there are as many as findings are shown.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from shardlang.bind import ModelNames, bind
from shardlang.grammar.cap import MOST_FINDINGS
from shardlang.grammar.patterns import nearest, nearest_to_pattern
from shardlang.spec import load_spec_text

HEAD = 'mesh { dp = 2 }\nmodel "m.py:f"\n'


def each(line: str, head: str = HEAD) -> Callable[[int], str]:
    return lambda count: head + "\n".join(line.format(i=i, j=i + 1) for i in range(count)) + "\n"


def block(word: str, item: str) -> Callable[[int], str]:
    return lambda count: f"{HEAD}{word} {{ {' '.join(item.format(i=i) for i in range(count))} }}\n"


GENERATED: dict[str, Callable[[int], str]] = {
    "a chain of lets": lambda n: each("let a{j} = a{i}")(n) + "let a0 = 1\n",
    "a chain backwards": lambda n: each("let a{i} = a{j}")(n) + f"let a{n} = 1\n",
    "a circle": lambda n: each("let a{i} = a{j}")(n) + f"let a{n} = a0\n",
    "a way into a circle": lambda n: each("let a{i} = a{j}")(n) + f"let a{n} = a{n}\n",
    "unknown lets": each("let size{i} = 1\ninput x{i} : f32[sizes{i}] [_]"),
    "unknown axes": lambda n: block("dims", "d{i} = dp")(n) + each('store "w" over dims{i}', "")(n),
    "dims": block("dims", "d{i} = dp"),
    "many axes": lambda n: f"mesh {{ {' '.join(f'a{i} = 1' for i in range(n))} }}\n",
    "params": each('param "w{i}" [dp]'),
    "values": each('value "w{i}".out [dp]'),
    "inputs": each("input x{i} : f32[2] [dp]"),
    "stores": each('store "w{i}" over dp'),
    "expects": block("expect", 'forbid all_reduce over dp in "w{i}"'),
    "one statement again": each('param "w" [dp]'),
    "misspelt": each('parm "w{i}" [dp]'),
    "comments": each("# above\nlet a{i} = 1  # behind"),
    "brackets": lambda n: f'{HEAD}model "m.py:f"(a = {"[" * n}{"]" * n})\n',
}  # fmt: skip


def lines_run(function: Callable[[], Any]) -> int:
    """How many lines of Python a call runs."""
    count = 0

    def trace(_frame: Any, event: str, _arg: Any) -> Any:
        nonlocal count
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        function()
    finally:
        sys.settrace(before)
    return count


@pytest.mark.parametrize("name", GENERATED)
def test_twice_the_text_is_twice_the_work(name: str) -> None:
    text = GENERATED[name]
    load_spec_text(text(2))
    once, twice = (lines_run(lambda n=n: load_spec_text(text(n))) for n in (90, 180))
    assert twice < 2.5 * once, (once, twice)


@pytest.fixture
def compared(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    words: list[str] = []
    real = difflib.get_close_matches

    def counted(word: str, names: list[str], **how: Any) -> list[str]:
        if names:
            words.append(word)
        return real(word, names, **how)

    monkeypatch.setattr(difflib, "get_close_matches", counted)
    yield words


def test_names_are_compared_for_findings_that_are_shown(compared: list[str]) -> None:
    load_spec_text(each("let a{i} = 1\ninput x{i} : f32[b{i}] [c{i}]")(200))
    assert len(compared) == MOST_FINDINGS
    compared.clear()
    names = ModelNames(params={f"w{i}": (4,) for i in range(9)})
    spec, _ = load_spec_text(each('param "v{i}" [dp]')(200))
    assert spec is not None
    _, findings = bind(spec, names)
    assert len(findings) == 200 and len(compared) == MOST_FINDINGS
    assert findings[0].help and "nearest" in findings[0].help


def test_very_long_names_are_compared_with_none(compared: list[str]) -> None:
    assert nearest("a" * 201, ["a" * 200]) == [] == nearest_to_pattern("b" * 201, ["b" * 200])
    assert nearest("a" * 9, ["a" * 201, "a" * 10]) == ["a" * 10]


def test_every_let_has_the_value_at_the_end_of_its_chain() -> None:
    text = HEAD + "let a = b\nlet b = c\nlet c = 3\nlet d = b\nlet n = a\n"
    text += "input x : f32[n, a, b, c, d] [dp, ...]\n"
    for sets, sizes in (({}, (3,) * 5), ({"b": "5"}, (5, 5, 5, 3, 5))):
        spec, findings = load_spec_text(text, sets=sets)
        assert spec is not None, findings
        assert spec.inputs[0].shape == sizes


def test_a_circle_is_one_finding_at_its_first_let() -> None:
    text = HEAD + "let into = c\nlet a = b\nlet b = c\nlet c = a\nlet s = s\nlet lost = into\n"
    _, findings = load_spec_text(text)
    assert [(f.code, f.span.line) for f in findings] == [("SH0233", 4), ("SH0233", 7)]


def test_a_mesh_has_axes_in_a_sensible_number() -> None:
    def found(count: int) -> list[str]:
        axes = " ".join(f"a{i} = 1" for i in range(count))
        text = f'mesh {{ {axes} }}\nmodel "m.py:f"\n'
        return [f.code for f in load_spec_text(text)[1] if f.is_error]

    assert found(64) == [] and found(65) == ["SH0225"]
