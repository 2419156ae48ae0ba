"""The program of one device as readable Python: one line an op, types as comments.

It is text to read, not to run: reshards are calls of their names, sizes and offsets that depend on
the device are `size(...)` and `start(...)` of a printed dim.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import torch
from torch import fx

from shardlang.ir.collective import ReduceOp
from shardlang.ir.graph import is_item, is_reshard, reshards_of
from shardlang.ir.layout import Layout
from shardlang.ir.mesh import joined, product
from shardlang.ir.node import info
from shardlang.ir.printed_type import printed_type
from shardlang.ir.program import LocalProgram, apply_reshard, apply_reshards, with_gradient
from shardlang.ir.reshard import Reshard
from shardlang.plan.names import op_name

_INDENT = "    "
_COLUMN = 56


def code_of(program: LocalProgram) -> str:
    """The text of a program, the same for every device."""
    return "\n".join(_Writer(program).lines()) + "\n"


class _Writer:
    def __init__(self, program: LocalProgram) -> None:
        self.program = program
        self.flowing = with_gradient(program)
        self.names = _names(program)

    def lines(self) -> Iterator[str]:
        mesh = self.program.mesh
        yield f"# mesh {mesh}: each of {mesh.devices} devices runs this on its own shards"
        yield "def program("
        for leaf in self.program.leaves:
            type_ = printed_type(leaf.dtype, leaf.at_rest)
            yield _commented(f"{_INDENT}{leaf.node},", f"{leaf.kind} {leaf.name}: {type_}")
        yield "):"
        module = ""
        for node in self.program.graph.nodes:
            if node.op == "output":
                yield from self._return(node)
            elif node.op != "placeholder" and not _is_bundled(node):
                if info(node).module != module:
                    module = info(node).module
                    yield ""
                    yield f"{_INDENT}# {module or 'the model itself'}"
                yield from self._call(node)

    def _call(self, node: fx.Node) -> Iterator[str]:
        if node.target is apply_reshards:
            pairs = reshards_of(node)
            items = {user.args[1]: user for user in node.users}
            yield f"{_INDENT}# {len(pairs)} reshards, sent as one call"
            for index, (value, reshard) in enumerate(pairs):
                if index in items:
                    yield self._line(items[index], self._reshard(value, reshard), node, reshard)
        else:
            own = reshards_of(node)[0][1] if is_reshard(node) else None
            yield self._line(node, self._right(node), node, own)

    def _line(self, node: fx.Node, right: str, call: fx.Node, reshard: Reshard | None) -> str:
        """One line: what is computed, its type, and what the gradient needs."""
        parts = []
        layout, val = info(node).layout, info(node).value
        if isinstance(layout, Layout) and isinstance(val, torch.Tensor):
            parts.append(printed_type(val.dtype, layout))
        if reshard is not None and call in self.flowing and reshard.adjoint.sends:
            axes = product(reshard.adjoint.axes)
            parts.append(f"gradient: {reshard.adjoint.op} over {axes}")
        return _commented(f"{_INDENT}{self.names[node]} = {right}", "; ".join(parts))

    def _reshard(self, value: fx.Node, reshard: Reshard, *more: str) -> str:
        return (
            f"{reshard.kind}({', '.join((self.names[value], _reshard_arguments(reshard), *more))})"
        )

    def _right(self, node: fx.Node) -> str:
        if node.target is apply_reshard:
            groups = [f"by={self.names[by]}" for by in node.all_input_nodes[1:]]
            return self._reshard(*reshards_of(node)[0], *groups)
        if is_item(node):
            return f"{self._text(node.args[0])}[{node.args[1]}]"
        texts = [self._text(arg) for arg in node.args]
        texts += [f"{k}={self._text(v)}" for k, v in node.kwargs.items() if k != "device"]
        space = "aten." if isinstance(node.target, torch._ops.OpOverload) else ""
        return f"{space}{op_name(node)}({', '.join(texts)})"

    def _text(self, value: object) -> str:
        if isinstance(value, fx.Node):
            return self.names[value]
        if isinstance(value, (list, tuple)):
            inner = ", ".join(self._text(item) for item in value)
            return f"[{inner}]" if isinstance(value, list) else f"({inner})"
        return repr(value)

    def _return(self, node: fx.Node) -> Iterator[str]:
        returned = node.args[0]
        assert isinstance(returned, (tuple, list))
        present = [value for value in returned if value is not None]
        yield ""
        yield f"{_INDENT}return ("
        for result, value in zip(self.program.results, present, strict=True):
            type_ = printed_type(result.dtype, result.layout)
            text = f"{_INDENT * 2}{self._text(value)},"
            yield _commented(text, f"{result.kind} {result.name}: {type_}")
        yield f"{_INDENT})"


def _names(program: LocalProgram) -> dict[fx.Node, str]:
    """Names for all nodes; a reshard's after its kind, a parameter's from a bucket after it."""
    names: dict[fx.Node, str] = {}
    counts = Counter(node.name for node in program.graph.nodes)
    for node in program.graph.nodes:
        name = node.name
        if is_reshard(node) and name.startswith("apply_reshard"):
            name = reshards_of(node)[0][1].kind
        elif _is_bundled(node):
            bucket, index = node.args
            assert isinstance(bucket, fx.Node) and isinstance(index, int)
            name = f"{names[reshards_of(bucket)[index][0]].removeprefix('p_')}"
        if name != node.name:
            counts[name] += 1
            name = name if counts[name] == 1 else f"{name}_{counts[name] - 1}"
        names[node] = name
    return names


def _is_bundled(node: fx.Node) -> bool:
    """Whether a node only names one result of a bucket, whose line names it already."""
    return (
        is_item(node)
        and isinstance(node.args[0], fx.Node)
        and node.args[0].target is apply_reshards
    )


def _reshard_arguments(reshard: Reshard) -> str:
    """The axes, the dims that change, and how it is reduced."""
    axes = ", ".join(f'"{axis.name}"' for axis in joined(reshard.axes))
    before, after = reshard.dims
    parts = [axes if len(reshard.axes) == 1 else f"({axes})"]
    if before is not None and after is not None and before != after:
        parts.append(f"from_dim={before}, to_dim={after}")
    elif before is not None or after is not None:
        parts.append(f"dim={after if before is None else before}")
    if reshard.reads is not None:
        parts.append(f'reads="{reshard.reads}"')
    if reshard.reduce is not ReduceOp.SUM:
        parts.append(f'op="{reshard.reduce}"')
    return ", ".join(parts)


def _commented(text: str, comment: str) -> str:
    return f"{text:<{_COLUMN}}  # {comment}" if comment else text
