"""The graph is typed: one record per node and per graph, no string keys."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import fx

from shardlang.ir.compat import FakeTensorMode
from shardlang.ir.node import NodeInfo, info, set_info
from shardlang.ir.rewriter import Rewriter

ROOT = Path(__file__).parent.parent
FOLDERS = ("passes", "runtime", "shardlang")
LINKED = {"grammar", "passes", "runtime"}
READS_META = {
    "shardlang/ir/node.py",  # where the record is kept
    "shardlang/capture/naming.py",  # where it is made from what export leaves
    "shardlang/ir/parse.py",  # lark's own places
    "shardlang/ir/compat.py",  # what backends of torch.compile read of a graph
}


def files() -> Iterator[tuple[str, ast.Module]]:
    """Every module that works on graphs, by its path in the repository."""
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            name = path.relative_to(ROOT)
            if folder != "shardlang" or name.parts[1] not in LINKED:
                yield str(name), ast.parse(path.read_text())


def string_keys(tree: ast.Module) -> Iterator[int]:
    """Lines that read or write `meta`, or `notes` by a key."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr == "meta":
            yield node.lineno
        if isinstance(node, ast.Subscript) and ast.unparse(node.value).endswith(".notes"):
            yield node.lineno


def test_no_string_keys_outside_of_the_record() -> None:
    wrong = [
        f"{name}:{line}"
        for name, tree in files()
        if name not in READS_META
        for line in string_keys(tree)
    ]
    assert wrong == []


def test_string_keys_are_found() -> None:
    text = "a = node.meta['val']\nb = graph.notes['routes']\nnode.meta |= c\n"
    assert sorted(string_keys(ast.parse(text))) == [1, 2, 3]


BUILDS = {
    "shardlang/ir/rewriter.py",
    "shardlang/capture/naming.py",  # placeholders under the model's names
    "shardlang/ir/parse_nodes.py",  # placeholders of a parsed graph
    "passes/normalize/inline_regions.py",  # copies what export traced
    "passes/step/differentiate.py",  # the graph of a step: its cotangents, and what nothing reads
    "passes/step/step_writer.py",  # the graph of a step, which begins as a copy
    "passes/step/again.py",  # copies of values of the forward
    "passes/step/dropouts.py",  # the ops of a dropout, which have no records yet
    "passes/step/write_update.py",  # the inputs of the update
    "passes/step/microbatches.py",  # copies of parts of a step
    "passes/step/pieces.py",  # the same
    "passes/step/split_stages.py",  # copies of parts of a step
    "passes/propagate/assign_stages.py",  # copies of masks, and leaves of tied parameters
    "passes/step/unread.py",  # drops what nothing reads
    "passes/step/numbers.py",  # the ops of a trace, which have no records yet
    "shardlang/cost/flops.py",  # one call, for which a rule is asked
    "shardlang/vjp/fewer.py",  # the ops of a trace, which have no records yet
    "shardlang/vjp/fold_views.py",  # the same
    "shardlang/vjp/kernels.py",  # the same
    "shardlang/vjp/op_tape.py",  # the same
    "shardlang/vjp/traced.py",  # the same
    "shardlang/vjp/at_device.py",  # the graph of a step on one device
    "runtime/step_executor.py",  # a graph for one device, that is only run
    "runtime/regions.py",  # the same, in parts
    "runtime/region.py",  # a copy of one, for a compiler
    "shardlang/proof/rules/calls.py",  # an interpreter's method of this name
    "shardlang/proof/rules/check.py",  # placeholders of one-op graphs
}
EDITS = {"create_node", "call_function", "placeholder", "node_copy", "graph_copy", "erase_node",
         "replace_all_uses_with", "inserting_before", "inserting_after"}  # fmt: skip


def edits(tree: ast.Module) -> Iterator[int]:
    """Lines that make, replace or remove nodes by fx itself."""
    for node in ast.walk(tree):
        called = node.func if isinstance(node, ast.Call) else None
        if isinstance(called, ast.Attribute) and called.attr in EDITS:
            yield called.lineno


def test_nodes_are_made_and_removed_by_the_rewriter() -> None:
    wrong = [
        f"{name}:{line}" for name, tree in files() if name not in BUILDS for line in edits(tree)
    ]
    assert wrong == []
    assert list(edits(ast.parse("graph.call_function(f)\nnode.target = f\n"))) == [1]


def test_a_rewriter_gives_nodes_their_values_and_the_origin_of_another() -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    with FakeTensorMode():
        set_info(x, NodeInfo(torch.empty(3, 5)))
    first = graph.call_function(torch.ops.aten.relu.default, (x,))
    set_info(first, NodeInfo(info(x).value, "up.act", "model.py:7", no_grad=True, regather=True))
    graph.output((first,))
    edit = Rewriter(graph)
    made = edit.call(torch.ops.aten.t.default, x, like=first)
    value = info(made).value
    assert isinstance(value, torch.Tensor) and value.shape == (5, 3)
    assert (info(made).module, info(made).source) == ("up.act", "model.py:7")
    assert info(made).no_grad and not info(made).regather
    edit.redirect(x, made, lambda user: user is first)
    edit.infer(first)
    assert first.args == (made,) and made.args == (x,)
    back = edit.call(torch.ops.aten.t.default, made, like=first)
    edit.replace(first, back)
    assert list(graph.nodes)[:3] == [x, made, back]
    assert graph.output_node().args == ((back,),)
