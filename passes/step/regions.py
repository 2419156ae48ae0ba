"""What may be computed again: whatever gives the same once more, and of modules what stays inside.

Kept are what draws random numbers, what the model changes and all that reads it, the groups of rows
that are routed, and parameters as they are gathered, of which `store` says whether they are kept.
"""

from __future__ import annotations

from collections.abc import Collection

from torch import fx

from shardlang.ir.compat import OpOverload
from shardlang.ir.graph import is_item
from shardlang.ir.leaf import LeafKind, ResultKind
from shardlang.ir.node import info
from shardlang.ir.step import StepProgram, is_collective, routed_by
from shardlang.ir.views import gives_view


def inside_modules(program: StepProgram, modules: Collection[str]) -> set[fx.Node]:
    """What some modules compute and nothing outside of each reads."""
    owners, again = _Owners(modules), set[fx.Node]()
    for node in repeatable(program):
        owner = owners.of(node)
        if owner is not None and not owners.leaves(node, owner):
            again.add(node)
    return again


def repeatable(program: StepProgram) -> list[fx.Node]:
    """The nodes of the forward that give the same when they are computed again, in order.

    With an item of what an op gives, the op is one of them.
    """
    kept, fixed, found = _kept(program), _fixed(program), dict[fx.Node, None]()
    for node in program.graph.nodes:
        if node.op != "call_function" or info(node).backward or info(node).random:
            continue
        gathered = is_collective(node) and fixed.issuperset(node.all_input_nodes)
        if gathered or node in kept or _writes(node):
            continue
        if not is_item(node) or node.all_input_nodes[0] in found:
            found[node] = None
    return list(found)


def _kept(program: StepProgram) -> set[fx.Node]:
    """Values that are not there once more: groups of rows, and what reads a changed leaf.

    Nor is what another stage of a pipeline reads: it is sent once, and the backward of that stage
    comes first.
    """
    changed = {r.name for r in program.results if r.kind is ResultKind.MUTATION}
    given = program.graph.find_nodes(op="placeholder")
    leaves = [n for n in given if not info(n).backward]
    pairs = zip(leaves, program.leaves, strict=True)
    stale = {node for node, leaf in pairs if leaf.name in changed}
    kept: set[fx.Node] = set()
    for node in program.graph.nodes:
        if node.op != "call_function":
            continue
        if _is_sent(node):
            kept.add(node)
        if not stale.isdisjoint(node.all_input_nodes):
            kept.add(node)
            stale |= {node} if gives_view(node.target) else set()
        if is_collective(node) and (groups := routed_by(node)) is not None:
            kept.add(groups)
    return kept


def _is_sent(node: fx.Node) -> bool:
    """Whether the forward of another stage reads a value."""
    stage = info(node).stage
    if stage is None or info(node).backward:
        return False
    read = {info(user).stage for user in node.users if not info(user).backward}
    return not read <= {stage, None}


def _fixed(program: StepProgram) -> set[fx.Node]:
    """What is made of parameters and buffers alone."""
    given = [n for n in program.graph.find_nodes(op="placeholder") if not info(n).backward]
    pairs = zip(given, program.leaves, strict=True)
    found = {node for node, leaf in pairs if leaf.kind is not LeafKind.INPUT}
    for node in program.graph.nodes:
        if node.op == "call_function" and found.issuperset(node.all_input_nodes):
            found.add(node)
    return found


def _writes(node: fx.Node) -> bool:
    """Whether an op writes into an operand, which nothing else reads then."""
    return isinstance(node.target, OpOverload) and node.target._schema.is_mutable


class _Owners:
    """Which of some modules, none inside another, computes a value."""

    def __init__(self, modules: Collection[str]) -> None:
        self.modules = set(modules)
        self.known: dict[str, str | None] = {}

    def of(self, node: fx.Node) -> str | None:
        """The module; None where it is another one."""
        name = info(node).module
        if name not in self.known:
            parts = name.split(".")
            above = ("", *(".".join(parts[:i]) for i in range(1, len(parts) + 1)))
            self.known[name] = next((one for one in above if one in self.modules), None)
        return self.known[name]

    def leaves(self, node: fx.Node, owner: str) -> bool:
        """Whether anything of the forward outside of the module reads a value."""
        return any(
            user.op == "output" or (not info(user).backward and self.of(user) != owner)
            for user in node.users
        )
