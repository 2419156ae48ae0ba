"""The import order: which part may import which, and no circles."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import networkx as nx

PACKAGE = Path(__file__).parent.parent / "shardlang"

ROOMS = (
    "grammar", "ir", "vjp", "rules", "runtime", "cost", "passes", "spec", "capture", "bind",
    "compiler", "plan", "graph", "explain", "proof", "init", "extend", "training", "api", "cli",
)  # fmt: skip
"""The rooms of the package; each may import those before it."""

FEWER: dict[str, set[str]] = {
    "ir": set(),
    "vjp": {"ir"},
    "runtime": {"ir", "vjp"},
    "cost": {"ir", "vjp", "rules", "runtime"},
    "passes": {"grammar", "ir", "vjp", "rules", "cost"},
    "spec": {"grammar", "ir"},
}
"""Rooms that may import less than all before them: room to the rooms that it may import."""

PHASES = ("normalize", "propagate", "rewrite", "experts", "pipeline")
"""The phases of the passes; each may import those before it, and what lies beside them."""

LAZY = {"shardlang", "shardlang.__main__", "shardlang.rules.prove"}
"""Doors that only forward: to the interface, the command line, and the proof of the rules."""


def modules() -> dict[str, Path]:
    """Dotted name to file, of every module of the package; the linked folders included."""
    found: dict[str, Path] = {}
    folders = [PACKAGE]
    while folders:
        folder = folders.pop()
        folders += [p for p in folder.iterdir() if p.is_dir() and p.name != "__pycache__"]
        for path in folder.glob("*.py"):
            parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
            found[".".join(parts).removesuffix(".__init__")] = path
    return found


def statements(path: Path, *, typing: bool) -> Iterator[ast.Import | ast.ImportFrom]:
    """The import statements of a file; those for type checkers alone only if `typing`."""
    todo: list[ast.AST] = [ast.parse(path.read_text())]
    while todo:
        node = todo.pop()
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            yield node
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test) and not typing:
            todo += node.orelse
            continue
        todo += ast.iter_child_nodes(node)


def imported(path: Path, known: dict[str, Path], *, typing: bool = True) -> set[str]:
    """Our modules that a file imports."""
    found: set[str] = set()
    for node in statements(path, typing=typing):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
            continue
        base = node.module or ""
        below = [f"{base}.{alias.name}" for alias in node.names]
        found |= {name if name in known else base for name in below}
    return found & known.keys()


def part_of(module: str) -> str:
    """`passes` for `shardlang.passes.propagate.flow`."""
    return [*module.split("."), ""][1]


MODULES = modules()


def test_the_linked_folders_are_part_of_the_package() -> None:
    for name in ("grammar", "passes", "runtime"):
        assert (PACKAGE / name).is_symlink()
        assert f"shardlang.{name}" in MODULES


def may_import(room: str) -> set[str]:
    """The rooms that the modules of a room may import."""
    return FEWER.get(room, set(ROOMS[: ROOMS.index(room)])) | {room}


def test_every_module_lies_in_a_room() -> None:
    assert {part_of(module) for module in MODULES.keys() - LAZY} == set(ROOMS)


def test_imports_keep_the_order() -> None:
    wrong = [
        f"{module} imports {name}"
        for module, path in sorted(MODULES.items())
        if module not in LAZY
        for name in sorted(imported(path, MODULES))
        if part_of(name) not in may_import(part_of(module))
    ]
    assert wrong == []


def phase_of(module: str) -> str:
    """`rewrite` for `shardlang.passes.rewrite.lower`."""
    return [*module.split("."), "", ""][2]


def test_imports_keep_the_order_of_the_phases() -> None:
    wrong = [
        f"{module} imports {name}"
        for module, path in sorted(MODULES.items())
        if part_of(module) == "passes" and phase_of(module) in PHASES
        for name in sorted(imported(path, MODULES))
        if part_of(name) == "passes" and phase_of(name) in PHASES
        if PHASES.index(phase_of(name)) > PHASES.index(phase_of(module))
    ]
    assert wrong == []


def test_imports_are_absolute_and_under_the_package() -> None:
    wrong = [
        f"{path}:{node.lineno}"
        for path in MODULES.values()
        for node in statements(path, typing=True)
        if is_relative(node) or top_names(node) & {"grammar", "passes", "runtime"}
    ]
    assert wrong == []


def is_relative(node: ast.Import | ast.ImportFrom) -> bool:
    """Whether the statement starts with dots."""
    return isinstance(node, ast.ImportFrom) and node.level > 0


def top_names(node: ast.Import | ast.ImportFrom) -> set[str]:
    """The top-level packages that a statement names."""
    if isinstance(node, ast.ImportFrom):
        return {(node.module or "").split(".")[0]}
    return {alias.name.split(".")[0] for alias in node.names}


def declared(extra: str | None = None) -> set[str]:
    """The packages that an installation brings, or those of an extra."""
    text = (PACKAGE.parent / "pyproject.toml").read_text()
    key = extra or "dependencies"
    (listed,) = re.findall(rf"^{key} = \[(.*?)\]$", text, re.MULTILINE | re.DOTALL)
    return set(re.findall(r'"([A-Za-z0-9_-]+)', listed))


def test_an_installation_brings_what_is_imported() -> None:
    known = {*sys.stdlib_module_names, "shardlang", *declared(), *declared("hf"), *declared("data")}
    wrong = {
        module: missing
        for module, path in MODULES.items()
        for node in statements(path, typing=False)
        if (missing := top_names(node) - known)
    }
    assert wrong == {}


def test_no_module_imports_itself_through_others() -> None:
    graph = nx.DiGraph()
    for module, path in MODULES.items():
        graph.add_edges_from((module, name) for name in imported(path, MODULES))
    circles = [sorted(group) for group in nx.strongly_connected_components(graph) if len(group) > 1]
    assert circles == []


def test_the_order_is_a_real_check(tmp_path: Path) -> None:
    path = tmp_path / "bad.py"
    path.write_text("import shardlang.passes.propagate.choose\nfrom shardlang.ir import mesh\n")
    found = imported(path, MODULES)
    assert found == {"shardlang.passes.propagate.choose", "shardlang.ir.mesh"}
