"""Pictures in files: what is written, and what is refused before any work."""

from __future__ import annotations

import importlib
import struct
from pathlib import Path
from typing import Any

import pytest

from shardlang.cli import pictures
from shardlang.runtime.errors import RunError

HEAD = '<svg xmlns="http://www.w3.org/2000/svg" width="60" height="20" font-family="sans-serif">'
SVG = f"{HEAD}{{}}</svg>"


def test_a_png_shows_the_text(tmp_path: Path) -> None:
    pytest.importorskip("resvg_py")
    made = []
    for text in ("", '<text x="2" y="15">Ab</text>'):
        path = tmp_path / "one.png"
        pictures.check_picture(path, "--plot")
        pictures.write_picture(path, SVG.format(text))
        made.append(path.read_bytes())
    assert made[0] != made[1]
    assert made[1].startswith(b"\x89PNG")
    assert struct.unpack(">II", made[1][16:24]) == (120, 40)


class Fontless:
    """A renderer on a machine without the fonts that are known."""

    def svg_to_bytes(self, svg_string: str, sans_serif_family: str | None = None) -> bytes:
        return b"empty"


class Arial(Fontless):
    """One that has a single font."""

    def svg_to_bytes(self, svg_string: str, sans_serif_family: str | None = None) -> bytes:
        seen = "<text" in svg_string and sans_serif_family == "Arial"
        return b"text" if seen else b"empty"


@pytest.mark.parametrize(
    ("module", "said"), [(None, r"shardlang\[png\]"), (Fontless(), "install one")]
)
def test_a_png_that_cannot_be_rendered_is_refused(
    monkeypatch: pytest.MonkeyPatch, module: Any, said: str
) -> None:
    def found(name: str) -> Any:
        if module is None:
            raise ImportError(name)
        return module

    monkeypatch.setattr(importlib, "import_module", found)
    with pytest.raises(RunError, match="a PNG needs") as caught:
        pictures.check_picture(Path("one.png"), "--plot")
    assert caught.value.code == "SH0607"
    assert caught.value.help is not None
    assert said.replace("\\", "") in caught.value.help


def test_the_font_is_one_that_is_seen() -> None:
    assert pictures._family(Arial()) == "Arial"
