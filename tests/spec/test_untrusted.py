"""A spec from a stranger reads specs alone, says little, and ends soon."""

from __future__ import annotations

import cProfile
import json
import os
import socket
import sys
from pathlib import Path

import pytest

from shardlang.capture import CaptureError
from shardlang.capture.hf import HfSource
from shardlang.grammar.diagnostics import Span, error
from shardlang.grammar.parser import parse
from shardlang.grammar.render import Sources, render_full
from shardlang.spec import load_spec, load_spec_text
from tests.commands import shardlang

GOOD = 'mesh { dp = 2 }\nmodel "m.py:f"\ninput x : f32[8, 4] [dp, _]\n'


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NO_COLOR", "1")
    return tmp_path


def make(folder: Path, name: str) -> None:
    """Something that is not a spec, under the name of one."""
    path = folder / name
    if name == "pipe.shard":
        os.mkfifo(path)
    elif name == "socket.shard":
        socket.socket(socket.AF_UNIX).bind(name)
    elif name == "zero.shard":
        path.symlink_to("/dev/zero")
    elif name == "folder.shard":
        path.mkdir()
    elif name == "loop.shard":
        path.symlink_to("loop.shard")
    elif name == "secret.shard":
        (folder / "secret.txt").write_text("password = hunter2\n")
        path.symlink_to("secret.txt")
    elif name == "large.shard":
        path.write_bytes(b"#" * (2**20 + 1))
    elif name == "binary.shard":
        path.write_bytes(b"\x7fELF\xff\xfe")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("/dev/zero", "is not a spec"),
        ("/etc/passwd", "is not a spec"),
        ("zero.shard", "is not a spec"),
        ("secret.shard", "is not a spec"),
        ("pipe.shard", "not a regular file"),
        ("socket.shard", "not a regular file"),
        ("folder.shard", "is a directory"),
        ("loop.shard", "symbolic links"),
        ("large.shard", "larger than 1 MiB"),
        ("binary.shard", "byte 4 is not UTF-8"),
    ],
)
def test_what_is_no_spec_is_not_read(name: str, said: str, folder: Path) -> None:
    make(folder, name)
    (folder / "main.shard").write_text(f'use "{name}"\n{GOOD}')
    status, out, err = shardlang("check", "--no-model", "main.shard")
    assert status == 1
    assert "error[SH0109]" in out and said in out and "main.shard:1:5" in out
    assert "hunter2" not in out and "root:" not in out and err == ""
    if name.endswith(".shard") and name not in ("zero.shard", "secret.shard"):
        assert load_spec(name)[1][0].code == "SH0109"


def test_configurations_are_regular_files_too(folder: Path) -> None:
    os.mkfifo("pipe.json")
    Path("deep.json").write_text("[" * 200_000)
    for name, said in (("pipe.json", "not a regular file"), ("deep.json", "is not JSON")):
        with pytest.raises(CaptureError, match=said) as caught:
            _ = HfSource(name).settings
        assert caught.value.code == "SH0350"


def test_findings_are_counted_and_lines_are_cut(folder: Path) -> None:
    Path("many.shard").write_text(f"{GOOD}let unused = 1\n{'$ ' * 10_000}")
    status, out, _ = shardlang("check", "--no-model", "many.shard")
    assert status == 1
    assert len(out) < 100_000 and "… and 9,900 more" in out
    assert max(map(len, out.splitlines())) <= 170
    _, out, _ = shardlang("check", "--no-model", "many.shard", "--json")
    found = json.loads(out)
    assert (len(found["diagnostics"]), found["more_diagnostics"]) == (100, 9_900)
    Path("wide.shard").write_text(f'{GOOD}param "a" [{"x" * 500_000}]\n')
    for style in ("full", "concise", "json", "github"):
        _, out, _ = shardlang("check", "--no-model", "wide.shard", "--output-format", style)
        assert "SH0205" in out and len(out) < 5000


def test_a_cut_line_shows_its_marks() -> None:
    text = "let " + "a" * 300 + " = $" + " " * 300 + "b"
    spot = Span("f", 1, 308, 1, 309)
    finding = error("SH0102", "`$`", spot, label="here")
    shown = render_full(finding, Sources({"f": text}, width=60)).split("\n")
    line, under = shown[3], shown[4]
    assert len(line) <= 60 and line[5] == "…" and line.endswith("…")
    assert line[under.index("^")] == "$" and under.endswith("^ here")


LIMIT = 5_000_000
"""Python calls: a few seconds."""

HOSTILE = {
    "open brackets": "{[(" * 5_000,
    "nested pattern": f'param "{"{" * 50_000}{"}" * 50_000}" [dp]',
    "large range": 'param "{0..999999999999}" [dp]',
    "many alternatives": 'param "' + "{a,b}" * 5000 + '" [dp]',
    "wide product": "dims { d = " + "*".join(["dp"] * 3_000) + " }",
    "large number": f"let x = {'9' * 500_000}",
    "long chain": "".join(f"let a{i} = a{i + 1}\n" for i in range(500)) + "let a500 = 1\n",
    "large mesh": "mesh { a = 9223372036854775807 b = 9223372036854775807 }",
    "misspelt": "".join(f'parm{i} "x"\n' for i in range(500)),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_it_ends_soon_and_raises_nothing(name: str) -> None:
    profile = cProfile.Profile()
    profile.runcall(parse, HOSTILE[name])
    profile.runcall(load_spec_text, GOOD + HOSTILE[name])
    assert sum(entry.callcount for entry in profile.getstats()) < LIMIT


OPENED: list[str] | None = None


def _watch(event: str, args: tuple[object, ...]) -> None:
    by_number = event == "open" and isinstance(args[0], int)
    if (
        OPENED is not None
        and not by_number
        and event in ("open", "import", "exec", "subprocess.Popen", "os.system")
    ):
        OPENED.append(f"{event} {args[0]}")


def test_check_without_the_model_opens_specs_alone(folder: Path) -> None:
    global OPENED
    Path("base.shard").write_text(GOOD)
    Path("m.py").write_text("raise SystemExit('run')")
    Path("main.shard").write_text('use "base.shard"\nparam "a" [tp]\nlet x = 1\n')
    shardlang("check", "--no-model", "main.shard")
    sys.addaudithook(_watch)
    OPENED = []
    try:
        status, out, _ = shardlang("check", "--no-model", "main.shard")
    finally:
        seen, OPENED = OPENED, None
    assert status == 1 and "SH0205" in out
    opened = {event for event in seen if not event.startswith("exec <code object <lambda>")}
    files = {Path(event.removeprefix("open ")).name for event in opened if "open " in event}
    assert files <= {"base.shard", "main.shard"}
    assert not [event for event in opened if not event.startswith("open ")]
