"""Make in-place operators functional.

Every tensor is either a root, which owns its storage, or a view of another through one operator.
A write to a tensor becomes a new value of it; the tensors that it views are rebuilt from the inside
out by scattering that value back, up to the root. A later read of any other view of the root
recomputes it from the root's new value.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import fx
from torch.fx.node import Argument

from shardlang.ir.compat import storage_key
from shardlang.ir.graph import ShardGraph
from shardlang.ir.leaf import LeafKind, ResultKind
from shardlang.ir.node import Value, info, set_info, tensor_of
from shardlang.ir.rewriter import Rewriter, origin_of
from shardlang.passes.errors import PassError
from shardlang.passes.invariants.invariant import Invariant
from shardlang.passes.invariants.traced import nothing_written
from shardlang.passes.normalize.fx_edit import carries_gradient, is_op
from shardlang.passes.normalize.results import result_of
from shardlang.passes.normalize.view_inverses import put_back
from shardlang.passes.normalize.view_lists import write_out_view_lists
from shardlang.passes.normalize.writes import (
    functional_form,
    no_form,
    writes,
    written_leaf,
    written_operand,
)
from shardlang.rules.call import Call

aten = torch.ops.aten

KEEP_STATISTICS = (aten.batch_norm, aten.native_batch_norm, aten.instance_norm)
"""Ops that write their running statistics, which their schemas do not say."""


@dataclass(slots=True)
class _Root:
    """A storage: how often it has been written, and the node of its latest whole value."""

    version: int
    current: fx.Node


@dataclass(frozen=True, slots=True)
class Functionalize:
    """Make writes functional: what a placeholder holds at the end is a result."""

    name: str = "functionalize"
    establishes: ClassVar[tuple[Invariant, ...]] = (nothing_written,)
    retires: ClassVar[tuple[Invariant, ...]] = ()

    def run(self, graph: ShardGraph) -> ShardGraph:
        """Rewrite all writes, and return the final value of every placeholder that is written.

        Raises:
            PassError: a write has no functional form.
        """
        write_out_view_lists(graph.graph)
        final = functionalize(graph.graph)
        output = graph.output
        output.args = ((*graph.result_nodes, *final.values()),)
        graph.results += [
            result_of(node.name, ResultKind.MUTATION, value) for node, value in final.items()
        ]
        return graph


def functionalize(graph: fx.Graph) -> dict[fx.Node, fx.Node]:
    """Rewrite `graph` in place; return the final value of every placeholder that was written.

    Raises `PassError` SH0357 for a write that cannot be expressed functionally.
    """
    if not any(writes(node) or is_op(node, KEEP_STATISTICS) for node in graph.nodes):
        return {}
    return _Functionalizer(graph).run()


class _Functionalizer:
    """One run over one graph."""

    def __init__(self, graph: fx.Graph) -> None:
        self.graph = graph
        self.edit = Rewriter(graph)
        self.roots: dict[fx.Node, _Root] = {}
        self.parents: dict[fx.Node, fx.Node] = {}
        self.fresh: dict[fx.Node, tuple[int, fx.Node]] = {}
        self.fakes: dict[fx.Node, Value] = {}

    def run(self) -> dict[fx.Node, fx.Node]:
        original = list(self.graph.nodes)
        for node in original:
            self._alias(node)
        written: list[fx.Node] = []
        for node in original:
            if writes(node):
                self._write(node)
                written.append(node)
                continue
            stats = node.args[3:5]
            self._read_operands(node)
            if node in self.roots:
                self.fresh[node] = (self.roots[node].version, node)
            if is_op(node, KEEP_STATISTICS) and _takes_statistics(node):
                self._expose_running_stats(node, stats)
        output = original[-1]
        final = {n: self._final_value(n, output) for n in original if self._is_written(n)}
        for node in reversed(written):
            self.edit.remove(node)
        return final

    def _is_written(self, node: fx.Node) -> bool:
        """Whether the node is a placeholder that the program has written."""
        return node.op == "placeholder" and node in self.roots and self.roots[node].version > 0

    def _final_value(self, node: fx.Node, output: fx.Node) -> fx.Node:
        """The value that a written placeholder ends with, cut off from autograd."""
        value = self._read(node, output)
        final = self.edit.call(aten.detach.default, value, like=output)
        set_info(final, replace(origin_of(value), value=info(final).value))
        return final

    def _alias(self, node: fx.Node) -> None:
        """Find out, by running the node on fakes, whose storage its result is."""
        fake = self.fakes[node] = self._run(node)
        if not isinstance(fake, torch.Tensor):
            return
        self.roots[node] = _Root(0, node)
        storage = storage_key(fake)
        for operand in node.all_input_nodes:
            for source in self._with_lists(operand):
                if self._storage(source) == storage:
                    self.parents[node] = source
                    self.roots[node] = self.roots[source]
                    return

    def _with_lists(self, operand: fx.Node) -> list[fx.Node]:
        """The tensor nodes that an operand may alias: itself, or what a multi-output op reads."""
        return [operand] if operand in self.roots else list(operand.all_input_nodes)

    def _storage(self, node: fx.Node) -> int | None:
        fake = self.fakes.get(node)
        return storage_key(fake) if isinstance(fake, torch.Tensor) else None

    def _run(self, node: fx.Node) -> Value:
        """The node's fake result, sharing storage as the real one would."""
        if node.op == "placeholder":
            fake = tensor_of(node)
            with self.edit.fake_mode:
                return torch.empty_strided(fake.size(), fake.stride(), dtype=fake.dtype)
        if node.op != "call_function":
            return None
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: self.fakes[n])
        assert callable(node.target)
        with self.edit.fake_mode, torch.no_grad():
            made: Value = node.target(*args, **kwargs)
        return made

    def _read_operands(self, node: fx.Node) -> None:
        """Let a node use the present values of its operands."""
        for operand in node.all_input_nodes:
            if operand in self.roots:
                node.replace_input_with(operand, self._read(operand, node))

    def _read(self, node: fx.Node, before: fx.Node) -> fx.Node:
        """The node that holds the present value of `node`'s tensor."""
        root = self.roots[node]
        version, value = self.fresh.get(node, (0, node))
        if version == root.version:
            return value
        parent = self.parents.get(node)
        value = root.current if parent is None else self._review(node, parent, before)
        self.fresh[node] = (root.version, value)
        return value

    def _review(self, node: fx.Node, parent: fx.Node, before: fx.Node) -> fx.Node:
        """Take the view `node` of its parent's present value."""
        value = self._read(parent, before)
        if writes(node) or is_op(node, [aten.detach_]):
            return value
        if node.target is operator.getitem:
            return self._review_item(node, value, before)
        args = tuple(value if a is node.args[0] else a for a in node.args)
        return self.edit.call(node.target, *args, like=before, **node.kwargs)

    def _review_item(self, node: fx.Node, value: fx.Node, before: fx.Node) -> fx.Node:
        """Take one item of a view operator with several results, such as split."""
        split = node.args[0]
        assert isinstance(split, fx.Node)
        again = self.edit.call(split.target, value, *split.args[1:], like=before, **split.kwargs)
        return self.edit.call(operator.getitem, again, node.args[1], like=before)

    def _write(self, node: fx.Node) -> None:
        """Replace an in-place call by its functional form and record the new value."""
        target = written_operand(node)
        if torch.Tag.inplace_view in Call(node).overload.tags:
            raise no_form(node)
        old = self._read(target, node)
        value = self._new_value(node, old)
        if info(node).no_grad:
            value = self.edit.call(aten.detach.default, value, like=node)
        self._store(target, value, node)

    def _store(self, target: fx.Node, value: fx.Node, at: fx.Node) -> None:
        """Make `value` the tensor `target`'s value, and so part of what it views."""
        root = self.roots[target]
        chain = [target]
        while chain[-1] in self.parents:
            chain.append(self.parents[chain[-1]])
        olds = [self._read(n, at) for n in chain]
        self._refuse_hidden_gradient(chain, olds, at)
        version = root.version + 1
        self.fresh[target] = (version, value)
        for view, parent, old in zip(chain, chain[1:], olds[1:], strict=False):
            value = self._put_back(view, old, value, at)
            self.fresh[parent] = (version, value)
        root.version, root.current = version, value

    def _put_back(self, view: fx.Node, parent: fx.Node, value: fx.Node, at: fx.Node) -> fx.Node:
        """The parent's value with the part that `view` shows replaced by `value`."""
        if writes(view) or is_op(view, [aten.detach_]):
            return value
        new = put_back(self.edit, view, parent, value, at)
        if new is None:
            raise PassError(
                "SH0357",
                f"a write in place through the view that `{view.target}` makes cannot be traced",
                source=info(at).source,
                help="compute a new tensor instead of writing into the view",
            )
        return new

    def _refuse_hidden_gradient(
        self, chain: list[fx.Node], olds: list[fx.Node], at: fx.Node
    ) -> None:
        """Refuse a write that autograd does not see to a tensor that it goes through."""
        hidden = info(at).no_grad
        for node, old in zip(chain, olds, strict=True):
            if hidden and carries_gradient(old):
                leaf = info(chain[-1]).leaf
                if leaf is not None and leaf.kind is LeafKind.PARAM:
                    raise written_leaf(leaf.kind, leaf.name, info(at).source)
                raise PassError(
                    "SH0357",
                    "a tensor with a gradient is changed in place where autograd does not see it:"
                    " under `no_grad`, or through `detach`",
                    source=info(at).source,
                    help="change a copy of the tensor, or parameters in the training loop",
                )
            hidden = hidden or is_op(node, [aten.detach, aten.detach_])

    def _new_value(self, node: fx.Node, old: fx.Node) -> fx.Node:
        """The functional counterpart of an in-place call on a tensor whose value is `old`."""
        given = (node.args, {k: v for k, v in node.kwargs.items() if k != "out"})
        args, kwargs = fx.map_arg(given, lambda n: self._read(n, node))
        if is_op(node, [aten.copy_]):
            copied = self.edit.call(aten.clone.default, args[1], like=node)
            return self._fit(copied, old, node)
        if is_op(node, [aten.zero_]):
            return self.edit.call(aten.zeros_like.default, old, like=node)
        value = self.edit.call(functional_form(node), *args, like=node, **kwargs)
        return self._fit(value, old, node)

    def _fit(self, value: fx.Node, old: fx.Node, at: fx.Node) -> fx.Node:
        """`value` in the type and shape of `old`."""
        if tensor_of(value).dtype != tensor_of(old).dtype:
            value = self.edit.call(aten.to.dtype, value, tensor_of(old).dtype, like=at)
        if tensor_of(value).shape != tensor_of(old).shape:
            value = self.edit.call(aten.expand.default, value, list(tensor_of(old).shape), like=at)
        return value

    def _expose_running_stats(self, node: fx.Node, stats: Sequence[Argument]) -> None:
        """Take the update of the running statistics out of a norm that takes those of its input.

        An instance norm keeps the means over the batch of the statistics of each row.
        """
        buffers = [one for one in stats if isinstance(one, fx.Node)]
        if len(buffers) < len(stats):
            return
        call = Call(node)
        x, momentum = call.operand("input"), float(call.number("momentum"))
        olds = (call.operand("running_mean"), call.operand("running_var"))
        node.args = (*node.args[:3], None, None, *node.args[5:])
        by_row = is_op(node, [aten.instance_norm])
        dims = [d for d in range(tensor_of(x).dim()) if d != 1 and not (by_row and d == 0)]
        data = self.edit.call(aten.detach.default, x, like=node)
        mean = self.edit.call(aten.mean.dim, data, dims, like=node)
        var = self.edit.call(aten.var.correction, data, dims, correction=1, like=node)
        if by_row:
            mean, var = (self.edit.call(aten.mean.dim, s, [0], like=node) for s in (mean, var))
        for buffer, old, new in zip(buffers, olds, (mean, var), strict=True):
            kept = self.edit.call(aten.mul.Tensor, old, 1.0 - momentum, like=node)
            added = self.edit.call(aten.mul.Tensor, new, momentum, like=node)
            total = self.edit.call(aten.add.Tensor, kept, added, like=node)
            self._store(buffer, self._fit(total, old, node), node)


def _takes_statistics(norm: fx.Node) -> bool:
    """Whether a norm computes with the statistics of its input."""
    call = Call(norm)
    return call.flag("training" if "training" in call.names else "use_input_stats")
