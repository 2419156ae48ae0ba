"""What cannot be done is refused: exit status 1 and one message with a place and a remedy.

A case is one text file in `cases/`: the command, the files that it needs in sections `== NAME`, and
in `== says` all that it prints; `…` stands for any text (what torch words, where a package lies).
With `SHARDLANG_UPDATE=1` the last section is written anew; read the difference.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from tests.commands import shardlang

CASES = sorted((Path(__file__).parent / "cases").glob("*.txt"))
FILE = re.compile(r"^== (\S+)\n", re.MULTILINE)
PLACE = re.compile(r"^ +--> (\S+):(\d+):\d+$", re.MULTILINE)


def read(path: Path) -> tuple[list[str], dict[str, str]]:
    """The arguments of a case's command, and its sections."""
    first, *rest = FILE.split(path.read_text(encoding="utf-8"))
    sections = dict(zip(rest[::2], (part.strip("\n") for part in rest[1::2]), strict=True))
    return first.removeprefix("$ shardlang").split(), sections


def write(path: Path, arguments: list[str], sections: dict[str, str]) -> None:
    """The file of a case."""
    parts = [f"== {name}\n{text}\n" for name, text in sections.items()]
    path.write_text("\n".join([f"$ shardlang {' '.join(arguments)}\n", *parts]), encoding="utf-8")


def same(expected: str, printed: str) -> bool:
    """Whether a line is as expected; `…` stands for any text."""
    return re.fullmatch(".*".join(map(re.escape, expected.split("…"))), printed) is not None


def agree(expected: str, printed: str) -> bool:
    """Whether all lines are as expected."""
    old, new = expected.splitlines(), printed.splitlines()
    return len(old) == len(new) and all(map(same, old, new))


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_one_message(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments, sections = read(path)
    for name, text in sections.items():
        if name != "says":
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text(text + "\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    status, out, err = shardlang(*arguments)
    printed = "\n".join(line.rstrip() for line in (out or err).strip("\n").splitlines())
    expected = sections.get("says", "")
    if os.environ.get("SHARDLANG_UPDATE") and not agree(expected, printed):
        write(path, arguments, {**sections, "says": printed})
        expected = printed
    assert status == 1
    assert out == "" or err == ""
    assert agree(expected, printed), printed
    check_message(printed, sections)


def check_message(text: str, files: dict[str, str]) -> None:
    """One finding, at a line that exists of the model or the spec, and with a remedy."""
    heads = re.findall(r"^(?:error|warning|note)\[SH\d{4}\]: .+", text, re.MULTILINE)
    assert len(heads) == 1
    assert "= help: " in text
    assert "Traceback" not in text
    file, line = PLACE.findall(text)[0]
    if file in files:
        assert 0 < int(line) <= len(files[file].splitlines())
    else:
        assert not Path(file).exists()


def test_every_kind_of_refusal_has_a_case() -> None:
    names = {path.stem for path in CASES}
    assert names >= {
        "axis_twice",
        "branch_on_item",
        "buffer_of_another_shape",
        "double_backward",
        "eager_experts",
        "misnamed_input",
        "missing_model_file",
        "more_shards",
        "sparse_embedding",
        "sparse_parameter",
        "unknown_custom_op",
    }
