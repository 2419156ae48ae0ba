"""Pictures in files: SVG as it is drawn, PNG as resvg renders it."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Protocol

import click

SUFFIXES = (".svg", ".png")

FAMILIES = (
    "Helvetica", "Arial", "DejaVu Sans", "Liberation Sans", "Noto Sans", "Open Sans", "Roboto",
    "Ubuntu", "Cantarell", "Verdana",
)  # fmt: skip
"""Fonts that a machine may have. resvg leaves out a text whose font it does not find."""

_SAMPLE = '<svg xmlns="http://www.w3.org/2000/svg" width="40" height="20">{}</svg>'
_TEXT = '<text x="2" y="15" font-family="sans-serif">Ab</text>'


class _Renderer(Protocol):
    """The package resvg_py."""

    def svg_to_bytes(
        self, *, svg_string: str, sans_serif_family: str | None = None, zoom: float | None = None
    ) -> bytes: ...


def check_picture(path: Path, option: str) -> None:
    """Refuse a file that is no picture that can be drawn here, before there is any work.

    Raises:
        click.BadParameter: its suffix is another.
        RunError: SH0607, a PNG cannot be rendered here.
    """
    if path.suffix.lower() not in SUFFIXES:
        message = f"'{path}' does not end in .svg or .png"
        raise click.BadParameter(message, param_hint=f"'{option}'")
    if path.suffix.lower() == ".png":
        _family(_renderer())


def write_picture(path: Path, svg: str) -> None:
    """Write a picture into a file.

    Raises:
        RunError: SH0607, a PNG cannot be rendered here; SH0609, the file cannot be written.
    """
    from shardlang.runtime.folder import cannot_write

    try:
        if path.suffix.lower() == ".png":
            path.write_bytes(_png(svg))
        else:
            path.write_text(svg, encoding="utf-8")
    except OSError as error:
        raise cannot_write(path, error) from error


def _png(svg: str) -> bytes:
    """The picture at twice its size."""
    renderer = _renderer()
    return renderer.svg_to_bytes(svg_string=svg, sans_serif_family=_family(renderer), zoom=2)


def _renderer() -> _Renderer:
    from shardlang.runtime.errors import RunError

    try:
        found: _Renderer = importlib.import_module("resvg_py")
    except ImportError:
        raise RunError(
            "SH0607",
            "a PNG needs the package resvg-py",
            help="install it with `pip install shardlang[png]`, or name a file `….svg`",
        ) from None
    return found


def _family(renderer: _Renderer) -> str:
    """The first font in which a text is seen."""
    from shardlang.runtime.errors import RunError

    empty = renderer.svg_to_bytes(svg_string=_SAMPLE.format(""))
    for family in FAMILIES:
        text = _SAMPLE.format(_TEXT)
        if renderer.svg_to_bytes(svg_string=text, sans_serif_family=family) != empty:
            return family
    raise RunError(
        "SH0607",
        "a PNG needs a font for its text, and this machine has none",
        help="install one, such as the package `fonts-dejavu-core`, or name a file `….svg`",
    )
