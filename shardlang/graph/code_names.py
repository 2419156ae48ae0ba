"""Variables of a step in its text, named after the model's modules.

A value is called after the module that gives it (`layers_0_up`), a gradient after the value
(`grad_layers_0_up`), and what a collective gives after what it sends (`loss_reduced`).
"""

from __future__ import annotations

import builtins
import keyword
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from torch import fx

from shardlang.graph.code_values import call_name
from shardlang.ir.collective import Kind
from shardlang.ir.graph import is_item, op_name
from shardlang.ir.node import info
from shardlang.ir.step import (
    collectives_of,
    is_bucket,
    is_collective,
    is_start,
    is_wait,
    pull,
    record,
    started_by,
)

_ENDINGS = {
    Kind.ALL_GATHER: "gathered", Kind.ALL_REDUCE: "reduced", Kind.REDUCE_SCATTER: "scattered",
    Kind.ALL_TO_ALL: "exchanged", Kind.EXCHANGE: "exchanged", Kind.PERMUTE: "permuted",
    Kind.DISPATCH: "dispatched", Kind.COLLECT: "collected", Kind.HALO: "with_halo",
    Kind.FOLD: "folded", Kind.SLICE: "sliced", Kind.PAD: "padded", Kind.FIRST: "on_first",
    Kind.ZERO: "zero",
}  # fmt: skip

_NOT_A_WORD = re.compile(r"\W+")


@dataclass(slots=True)
class CodeNames:
    """Names of the variables, each given once.

    Attributes:
        known: names that are given from outside, by the name of the node.
        adjoints: by the name of a node, the name of the value whose gradient it is.
        again: by the name of a node, the name of the value that it is once more.
    """

    known: Mapping[str, str]
    adjoints: Mapping[str, str] = field(default_factory=dict)
    again: Mapping[str, str] = field(default_factory=dict)
    names: dict[fx.Node, str] = field(default_factory=dict)
    _by_node: dict[str, str] = field(default_factory=dict)
    _used: set[str] = field(default_factory=set)
    _last: set[fx.Node] = field(default_factory=set)

    def add(self, nodes: Iterable[fx.Node]) -> None:
        """Name some nodes, in their order."""
        nodes = list(nodes)
        self._used |= {*keyword.kwlist, *dir(builtins), "torch", "step", "forward", "backward"}
        calls = [node for node in nodes if node.op == "call_function"]
        targets = [x for node in calls for x in (node.target, *node.args[:1]) if callable(x)]
        self._used |= {call_name(target).partition(".")[0] for target in targets}
        self._used |= {kind.value for kind in Kind} | {"update", "wait", "optimizer", "leaves"}
        ops = (n for n in calls if not info(n).backward and not is_wait(n) and not is_item(n))
        self._last |= set({info(n).module: n for n in ops if not is_collective(n)}.values())
        given = {name: self._unique(word(known)) for name, known in self.known.items()}
        for node in nodes:
            source = same_as(node)
            if source is not None:
                name = self.names[source]
            else:
                name = given.get(node.name) or self._unique(self._base(node))
            self.names[node] = self._by_node[node.name] = name

    def __call__(self, node: fx.Node) -> str:
        """The variable of a node."""
        return self.names[node]

    def of(self, name: str) -> str:
        """The variable of the node of that name."""
        return self._by_node[name]

    def _base(self, node: fx.Node) -> str:
        value = self.again.get(node.name)
        if value in self._by_node:
            return f"{self._by_node[value]}_again"
        if is_item(node) and is_sent(node.all_input_nodes[0]):
            return self._of_bucket(node)
        if is_wait(node):
            return self.names[started_by(node)].removesuffix("_start")
        if is_collective(node):
            return self._sent(node) + ("_start" if is_start(node) else "")
        value = self.adjoints.get(node.name)
        if value in self._by_node:
            made = f"grad_{self._by_node[value]}"
            return f"{made}_partial" if made in self._used else made
        return self._op(node)

    def _op(self, node: fx.Node) -> str:
        """After the module, and the op as well if it is not what the module gives."""
        called = "pulled" if node.target is pull else word(op_name(node.target).partition(".")[0])
        if node.target is record:
            called = word(op_name(node.args[0]).partition(".")[0])
        if is_item(node):
            called = f"item_{node.args[1]}"
        tail = tail_of(info(node).module)
        if node in self._last and tail:
            return tail
        return f"{tail}_{called}" if tail else called

    def _sent(self, node: fx.Node) -> str:
        x, first = collectives_of(node)[0]
        if is_bucket(node):
            return f"bucket_{_ENDINGS[first.kind]}"
        return f"{self.names[x]}_{_ENDINGS[first.kind]}"

    def _of_bucket(self, node: fx.Node) -> str:
        """What a bucket makes of one of its values."""
        bucket, place = node.all_input_nodes[0], node.args[1]
        bucket = started_by(bucket) if is_wait(bucket) else bucket
        assert isinstance(place, int)
        x, collective = collectives_of(bucket)[place]
        return f"{self.names[x]}_{_ENDINGS[collective.kind]}"

    def _unique(self, base: str) -> str:
        name, number = base, 1
        while name in self._used:
            name, number = f"{base}_{number}", number + 1
        self._used.add(name)
        return name


def same_as(node: fx.Node) -> fx.Node | None:
    """The value that a collective which does nothing gives; None for any other node."""
    if is_item(node):
        source, place = node.all_input_nodes[0], node.args[1]
        if is_collective(source) and is_bucket(source) and isinstance(place, int):
            x, collective = collectives_of(source)[place]
            return x if collective.kind is Kind.NOTHING else None
        return None
    if not is_collective(node) or is_start(node):
        return None
    x, collective = collectives_of(node)[0]
    return x if collective.kind is Kind.NOTHING else None


def is_sent(node: fx.Node) -> bool:
    """Whether a node is a bucket of collectives, or the wait for one."""
    return is_wait(node) or (is_collective(node) and is_bucket(node))


def tail_of(module: str) -> str:
    """The end of a module's name that tells it from others: `layers_0_up`."""
    parts = module.split(".")
    numbers = [i for i, part in enumerate(parts) if part.isdigit()]
    if not numbers:
        return word(parts[-1]) if parts[-1] else ""
    last = numbers[-1]
    kept = parts[max(last - 1, 0) : last + 1] + parts[last + 1 :][-1:]
    return word("_".join(kept))


def short_name(leaf: str) -> str:
    """The variable of a leaf.

    >>> short_name("model.layers.0.mlp.up.weight")
    'layers_0_up_weight'
    """
    module, _, name = leaf.rpartition(".")
    tail = tail_of(module)
    return word(f"{tail}_{name}" if tail else name)


def word(name: str) -> str:
    """A name that Python takes."""
    made = _NOT_A_WORD.sub("_", name).strip("_") or "value"
    return f"_{made}" if made[0].isdigit() else made
