"""A picture as DOT text: modules as nested clusters, types on arrows, a legend."""

from __future__ import annotations

from collections.abc import Iterator

from shardlang.grammar.words import counted
from shardlang.graph.picture import Box, BoxKind, Picture
from shardlang.ir.mesh import Mesh

Style = dict[str, str]

_RESHARDS: dict[str, Style] = {
    "all_gather": {"shape": "house", "fillcolor": "#bfdbfe", "color": "#1d4ed8"},
    "reduce_scatter": {"shape": "invhouse", "fillcolor": "#e9d5ff", "color": "#7e22ce"},
    "all_reduce": {"shape": "octagon", "fillcolor": "#fecaca", "color": "#b91c1c"},
    "all_to_all": {"shape": "parallelogram", "fillcolor": "#fed7aa", "color": "#c2410c"},
    "send_recv": {"shape": "cds", "fillcolor": "#a5f3fc", "color": "#0e7490"},
}
"""One shape and colour for each collective."""

_LOCAL: Style = {
    "shape": "box",
    "style": "rounded,filled,dashed",
    "fillcolor": "#f3f4f6",
    "color": "#6b7280",
}
"""Reshards that send nothing forward, only their gradient."""

_AGAIN: Style = {"style": "filled,dashed", "fillcolor": "#ecfccb", "color": "#4d7c0f"}
"""What the backward makes once more."""

_KINDS: dict[BoxKind, Style] = {
    BoxKind.OP: {
        "shape": "box",
        "style": "rounded,filled",
        "fillcolor": "#ffffff",
        "color": "#374151",
    },
    BoxKind.PARAM: {"shape": "note", "fillcolor": "#fef9c3", "color": "#a16207"},
    BoxKind.BUFFER: {"shape": "note", "fillcolor": "#f5f5f4", "color": "#78716c"},
    BoxKind.CONSTANT: {"shape": "note", "fillcolor": "#f5f5f4", "color": "#78716c"},
    BoxKind.INPUT: {"shape": "oval", "fillcolor": "#dcfce7", "color": "#15803d"},
    BoxKind.OUTPUT: {"shape": "oval", "fillcolor": "#dcfce7", "color": "#15803d", "penwidth": "2"},
}

_LEGEND = {
    BoxKind.PARAM: "parameter",
    BoxKind.BUFFER: "buffer",
    BoxKind.CONSTANT: "constant",
    BoxKind.INPUT: "input",
    BoxKind.OUTPUT: "output",
    BoxKind.OP: "op",
}

_HEAD = """digraph "{title}" {{
  graph [rankdir=TB, ranksep=0.3, nodesep=0.25, fontname="Helvetica", fontsize=12, labelloc=t,
    label="{label}", compound=true]
  node [fontname="Helvetica", fontsize=10, style=filled, margin="0.09,0.05", height=0.3]
  edge [fontname="Helvetica", fontsize=8, color="#6b7280", fontcolor="#374151", arrowsize=0.6]"""


def dot_text(picture: Picture, title: str, mesh: Mesh) -> str:
    """The DOT source; the same picture always gives the same text."""
    label = f"{title}: mesh {mesh}, {counted(mesh.devices, 'device')}"
    lines = [_HEAD.format(title=escape(title), label=escape(label))]
    lines += _cluster(picture, "", 1)
    lines += _arrows(picture)
    lines += _legend(picture, mesh)
    return "\n".join([*lines, "}"]) + "\n"


def _cluster(picture: Picture, module: str, depth: int) -> Iterator[str]:
    """The boxes of a module and the clusters of the modules in it."""
    indent = "  " * depth
    for box in picture.boxes.values():
        if box.module == module:
            yield f"{indent}{_box(box)}"
    for child in _children(picture, module):
        yield f"{indent}subgraph {quote('cluster_' + child)} {{"
        yield f"{indent}  {_attributes(_cluster_style(picture, child, module, depth))}".rstrip()
        yield from _cluster(picture, child, depth + 1)
        yield f"{indent}}}"


def _children(picture: Picture, module: str) -> list[str]:
    """The modules right below one that are drawn: chains of modules with nothing else are one."""
    prefix = f"{module}." if module else ""
    below = [b.module for b in picture.boxes.values() if b.module != module]
    found: dict[str, list[str]] = {}
    for name in below:
        if name.startswith(prefix):
            found.setdefault(prefix + name[len(prefix) :].split(".")[0], []).append(name)
    return [_sole(child, names) for child, names in found.items()]


def _sole(module: str, names: list[str]) -> str:
    """The innermost module that holds all that a module holds."""
    while module not in names:
        deeper = {".".join(name.split(".")[: module.count(".") + 2]) for name in names}
        if len(deeper) > 1:
            break
        module = deeper.pop()
    return module


def _cluster_style(picture: Picture, module: str, parent: str, depth: int) -> Style:
    label = module[len(parent) + 1 :] if parent else module
    style = {"label": label, "style": "rounded,filled", "color": "#9ca3af", "labeljust": "l"}
    style["fillcolor"] = "#ffffff" if depth % 2 == 0 else "#f8fafc"
    style |= {"fontsize": "11", "penwidth": "1"}
    for name, (pattern, count) in picture.repeats.items():
        if module == name or module.startswith(name + "."):
            shown = pattern + module[len(name) :]
            inner = shown.startswith(f"{parent}.") if parent else True
            style["label"] = shown[len(parent) + bool(parent) :] if inner else label
            if module == name:
                style |= {"label": f"{style['label']}  ×{count}", "penwidth": "2.5"}
    return style


def _box(box: Box) -> str:
    if box.title or box.params:
        return f'{quote(box.id)} [shape=plain, style="", label=<{_table(box)}>]'
    style = dict(_RESHARDS.get(box.op, _LOCAL) if box.kind is BoxKind.RESHARD else _KINDS[box.kind])
    style |= _again(box)
    style |= {"penwidth": "3"} if box.flight else {}
    return f"{quote(box.id)} [{_pairs({'label': _label(box.text)} | style)}]"


def _again(box: Box) -> Style:
    """The style of what the backward makes once more; a collective keeps its colour."""
    if not box.again:
        return {}
    return {"style": _AGAIN["style"]} if box.kind is BoxKind.RESHARD else _AGAIN


def _table(box: Box) -> str:
    """A box with the name of its module above and its parameters below."""
    head = f"<b>{html(box.title)}</b><br/>" if box.title else ""
    cells = [f'<tr><td border="0">{head}{html(_label(box.text))}</td></tr>']
    paper = _KINDS[BoxKind.PARAM]
    style = {"fillcolor": "white", "color": _KINDS[BoxKind.OP]["color"]} | _again(box)
    for lines in box.params:
        text = f'<font point-size="9">{html(_label(lines))}</font>'
        cells.append(f'<tr><td bgcolor="{paper["fillcolor"]}" border="0">{text}</td></tr>')
    return (
        '<table border="1" cellborder="0" cellspacing="0" cellpadding="3" style="rounded" '
        f'bgcolor="{style["fillcolor"]}" color="{style["color"]}">{"".join(cells)}</table>'
    )


def _label(lines: tuple[str, ...]) -> str:
    return "\n".join(lines)


def _arrows(picture: Picture) -> Iterator[str]:
    """The arrows; of those that carry one value from one box, the first says what it is."""
    told: set[tuple[str, tuple[str, ...]]] = set()
    for arrow in picture.arrows.values():
        style: Style = {"color": "#dc2626", "fontcolor": "#dc2626"} if arrow.moves else {}
        known = arrow.moves or picture.boxes[arrow.source].kind in (BoxKind.OP, BoxKind.RESHARD)
        if known and arrow.lines and (arrow.source, arrow.lines) not in told:
            told.add((arrow.source, arrow.lines))
            style["label"] = _label(tuple(f" {line}" for line in arrow.lines))
        end = f" [{_pairs(style)}]" if style else ""
        yield f"  {quote(arrow.source)} -> {quote(arrow.target)}{end}"


def _legend(picture: Picture, mesh: Mesh) -> Iterator[str]:
    """A table of the colours that occur."""
    boxes = list(picture.boxes.values())
    rows = [
        (text, _KINDS[kind]) for kind, text in _LEGEND.items() if any(b.kind == kind for b in boxes)
    ]
    if any(box.params for box in boxes) and not any(box.kind is BoxKind.PARAM for box in boxes):
        rows.insert(0, ("parameter", _KINDS[BoxKind.PARAM]))
    rows += [("once more in the backward", _AGAIN)] if any(box.again for box in boxes) else []
    reshards = [box.op for box in boxes if box.kind is BoxKind.RESHARD]
    rows += [(op, style) for op, style in _RESHARDS.items() if op in reshards]
    if any(op not in _RESHARDS for op in reshards):
        rows.append(("local, collective in the backward", _LOCAL))
    cells = "".join(
        f'<td bgcolor="{style["fillcolor"]}" border="1" color="{style["color"]}">{text}</td>'
        for text, style in rows
    )
    notes = f'<tr><td colspan="{len(rows)}" align="left">{html(_notes(picture, mesh))}</td></tr>'
    table = f'<table border="0" cellborder="0" cellspacing="4"><tr>{cells}</tr>{notes}</table>'
    yield f"  legend [shape=plaintext, fillcolor=white, label=<{table}>]"


def _notes(picture: Picture, mesh: Mesh) -> str:
    """What the marks in types and boxes mean, as far as they occur."""
    axis = mesh.whole.axes[-1].name
    texts = [line for arrow in picture.arrows.values() for line in arrow.lines]
    for box in picture.boxes.values():
        texts += [line for lines in (box.text, *box.params) for line in lines]
    notes = {
        "@": f"@{axis} split over {axis}",
        " +": f"+{axis} a summand on each {axis} device",
        " ~": f"~{axis} whole, each {axis} device with a summand of the gradient",
        "grad: ": "grad: the collective of the gradient; bytes: what the busiest device sends",
        "reads ": "reads: what is kept of the forward, or a parameter",
        "beside ": "beside: so many ops are computed between its start and its wait",
        "needs": "needs, red: the layout has still to be changed",
    }
    return "\n".join(note for mark, note in notes.items() if any(mark in text for text in texts))


def _attributes(style: Style) -> str:
    return "; ".join(f"{key}={quote(value)}" for key, value in style.items())


def _pairs(style: Style) -> str:
    return ", ".join(f"{key}={quote(value)}" for key, value in style.items())


def quote(text: str) -> str:
    """A DOT string."""
    return f'"{escape(text)}"'


def escape(text: str) -> str:
    """A text inside a DOT string."""
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def html(text: str) -> str:
    """A text inside an HTML-like label."""
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return text.replace("\n", "<br/>")
