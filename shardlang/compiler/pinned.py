"""A program whose leaves lie where they lie in another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from shardlang.compiler.build import build_graph
from shardlang.compiler.driver import Compiled
from shardlang.ir.layout import Layout
from shardlang.ir.records import Stated
from shardlang.passes.pipeline import run_passes
from shardlang.passes.rewrite.localize import to_program


def layouts_of(compiled: Compiled, *kinds: str) -> dict[str, Layout]:
    """The layouts of the leaves of some kinds, by name."""
    return {x.name: x.layout.unlabelled() for x in compiled.program.leaves if x.kind in kinds}


def pinned(compiled: Compiled, before: Mapping[str, Layout]) -> Compiled:
    """The same, with the layouts stated as they were."""
    stores = compiled.statements.stores
    stated = {
        name: Stated(layout.without(stores[name].axes if name in stores else ()))
        for name, layout in before.items()
    }
    statements = replace(compiled.statements, leaves={**compiled.statements.leaves, **stated})
    graph = run_passes(build_graph(compiled.captured, statements))
    return replace(compiled, statements=statements, graph=graph, program=to_program(graph))
