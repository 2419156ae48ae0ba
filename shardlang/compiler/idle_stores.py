"""Notes about statements by which nothing is stored otherwise than it lies without them."""

from __future__ import annotations

from dataclasses import replace

from shardlang.bind import Binding
from shardlang.grammar.diagnostics import Diagnostic, error
from shardlang.ir.node import info
from shardlang.ir.origin import Reason
from shardlang.ir.program import LocalProgram
from shardlang.spec.types import Spec, StoreDecl


def idle_stores(spec: Spec, binding: Binding, program: LocalProgram) -> list[Diagnostic]:
    """A note for every `store` that is in force for some parameters and splits none of them."""
    splitting = _stored_by_it(program)
    idle: dict[int, tuple[StoreDecl, list[str]]] = {}
    for name, decl in binding.stores.items():
        idle.setdefault(id(decl), (decl, []))[1].append(name)
    return [
        _note(decl)
        for decl, names in idle.values()
        if splitting.isdisjoint(names) and any(axis.size > 1 for axis in spec.mesh.named(decl.axes))
    ]


def _stored_by_it(program: LocalProgram) -> set[str]:
    """The parameters that storage splits."""
    leaves = {leaf.node: leaf.name for leaf in program.leaves}
    found = set()
    for node in program.graph.find_nodes(op="placeholder"):
        sharding = info(node).sharding
        reasons = sharding.origins.values() if sharding is not None else ()
        if any(origin.reason is Reason.STORED for origin in reasons):
            found.add(leaves[node.name])
    return found


def _note(decl: StoreDecl) -> Diagnostic:
    over = "*".join(decl.axes)
    found = error(
        "SH0315",
        f"`store {decl.pattern}` splits nothing over {over}",
        decl.span,
        help=f"what it names is split over {over} already, or has no dim of that many indices:"
        " leave the statement out",
    )
    return replace(found, severity="note")
