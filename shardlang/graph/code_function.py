"""One function of a step's text: a line for each op, types as comments."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import fx

from shardlang.cost.effects import TensorType
from shardlang.graph.code_names import CodeNames, is_sent, same_as
from shardlang.graph.code_values import (
    call_name,
    collective_arguments,
    collective_name,
    text_of,
)
from shardlang.ir.graph import is_item
from shardlang.ir.layout import Layout
from shardlang.ir.node import info
from shardlang.ir.printed_type import dtype_name, printed_type
from shardlang.ir.step import (
    Stream,
    collectives_of,
    is_bucket,
    is_collective,
    is_start,
    is_wait,
    routed_by,
    started_by,
    stream_of,
)
from shardlang.ir.views import gives_view
from shardlang.plan.text import shape_text

INDENT = "    "
_COLUMN, _WIDEST = 60, 100


@dataclass(slots=True)
class Function:
    """Writes some nodes of a graph as the body of a function.

    Attributes:
        nodes: the nodes, in order, without what the function is given.
        kept: what the function returns.
        types: local types on the first device, where they are known.
    """

    names: CodeNames
    nodes: Sequence[fx.Node]
    kept: set[fx.Node]
    types: Mapping[fx.Node, TensorType] = field(default_factory=dict)

    def lines(self) -> Iterator[str]:
        """The body, one module after the other."""
        module, freed = None, self._freed()
        for node in self.nodes:
            lines = list(self._statement(node))
            if lines and info(node).module != module:
                yield from [""] if module is not None else []
                module = info(node).module
                yield f"{INDENT}# {module or 'the model itself'}"
            yield from lines
            if node in freed:
                yield f"{INDENT}del {', '.join(freed[node])}"

    def _statement(self, node: fx.Node) -> Iterator[str]:
        if same_as(node) is not None or _names_a_part(node):
            return
        if is_collective(node) and not is_start(node) and is_bucket(node):
            if any(same_as(item) is None for item in node.users):
                yield from self._several(node)
        elif is_wait(node) and is_bucket(started_by(node)):
            yield from self._several(node)
        else:
            yield from self._line(node)

    def _several(self, node: fx.Node) -> Iterator[str]:
        """What a bucket gives, each with its type."""
        count = len(collectives_of(started_by(node) if is_wait(node) else node))
        items = {user.args[1]: user for user in node.users}
        yield f"{INDENT}("
        for place in range(count):
            item = items.get(place)
            name, said = ("_", "") if item is None else (self.names(item), self.type_of(item))
            yield commented(f"{INDENT * 2}{name},", said)
        yield from broken(f"{INDENT}) = ", *self._call(node))

    def _line(self, node: fx.Node) -> Iterator[str]:
        """What is computed, and its type; a call that is too long on several lines."""
        stream = stream_of(node) if is_start(node) else Stream.ACTIVATIONS
        said = self.type_of(node) if stream is Stream.ACTIVATIONS else f"stream: {stream}"
        left = f"{INDENT}{self.names(node)} = "
        if is_item(node):
            right = f"{self.names(node.all_input_nodes[0])}[{node.args[1]}]"
            yield commented(left + right, said)
            return
        yield from broken(left, *self._call(node), said)

    def _call(self, node: fx.Node) -> tuple[str, list[str]]:
        """What is called, and the arguments."""
        if is_wait(node):
            return "wait", [self.names(started_by(node))]
        if is_collective(node):
            return self._sent(node)
        args = [text_of(arg, self.names) for arg in node.args]
        args += [f"{k}={text_of(v, self.names)}" for k, v in node.kwargs.items() if k != "device"]
        return call_name(node.target), args

    def _sent(self, node: fx.Node) -> tuple[str, list[str]]:
        """The call of a collective, or of its start."""
        pairs, by = collectives_of(node), routed_by(node)
        args = [self.names(x) for x, _ in pairs]
        if is_bucket(node):
            args[0], args[-1] = f"[{args[0]}", f"{args[-1]}]"
            args = [f"[{self.names(pairs[0][0])}]"] if len(pairs) == 1 else args
        args += [self.names(by)] if by is not None else []
        args += collective_arguments([c for _, c in pairs], several=is_bucket(node))
        start = "start_" if is_start(node) else ""
        return f"{start}{collective_name(pairs[0][1])}", args

    def type_of(self, node: fx.Node) -> str:
        """The printed type of a value; of one whose layout nobody needs, its local type."""
        known = info(node)
        if isinstance(known.layout, Layout) and isinstance(known.value, torch.Tensor):
            return printed_type(known.value.dtype, known.layout)
        local = self.types.get(node)
        return "" if local is None else f"local {dtype_name(local.dtype)}{shape_text(local.shape)}"

    def _freed(self) -> dict[fx.Node, list[str]]:
        """Gathered parameters, by the last node that reads them or a view of them."""
        gathered = {self.names(node) for node in self.nodes if self._is_gathered(node)}
        last: dict[str, fx.Node] = {}
        for node in self.nodes:
            read = [self.names(x) for x in node.all_input_nodes if self.names(x) in gathered]
            if read and gives_view(node.target):
                gathered.add(self.names(node))
            if same_as(node) is None and not _names_a_part(node):
                last.update(dict.fromkeys(read, node))
        kept = {self.names(node) for node in self.kept}
        found: dict[fx.Node, list[str]] = {}
        for name, node in last.items():
            if name not in kept:
                found.setdefault(node, []).append(name)
        return found

    def _is_gathered(self, node: fx.Node) -> bool:
        """Whether a node is a parameter that has just been gathered."""
        source = node.all_input_nodes[0] if is_item(node) else node
        sent = started_by(source) if is_wait(source) else source
        if not is_collective(sent) or is_start(node) or is_bucket(sent) != is_item(node):
            return False
        pairs = collectives_of(sent)
        place = node.args[1] if is_item(node) else 0
        assert isinstance(place, int)
        x, collective = pairs[place]
        while (same := same_as(x)) is not None:
            x = same
        return x.op == "placeholder" and collective.sends


def _names_a_part(node: fx.Node) -> bool:
    """Whether a node is one of the values of a bucket, whose line names it already."""
    return is_item(node) and is_sent(node.all_input_nodes[0])


def broken(left: str, name: str, args: Sequence[str], said: str = "") -> Iterator[str]:
    """A call, on several lines if it is too long for one."""
    whole = f"{left}{name}({', '.join(args)})"
    if len(whole) <= _WIDEST:
        yield commented(whole, said)
        return
    yield commented(f"{left}{name}(", said)
    yield from filled(args)
    yield f"{INDENT})"


def filled(args: Sequence[str]) -> Iterator[str]:
    """Arguments on as many lines as they take."""
    line = INDENT * 2
    for arg in args:
        if len(line) + len(arg) >= _WIDEST and line.strip():
            yield line.rstrip()
            line = INDENT * 2
        line += f"{arg}, "
    yield line.rstrip().removesuffix(",")


def commented(text: str, comment: str) -> str:
    """A line of text and what is said of it."""
    return f"{text:<{_COLUMN}}  # {comment}" if comment else text
