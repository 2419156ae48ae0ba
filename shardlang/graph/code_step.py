"""Forward and backward of a step as functions in readable Python, one line an op."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from torch import fx

from shardlang.compiler.whole_step import half
from shardlang.cost.effects import TensorType
from shardlang.cost.live import local_types
from shardlang.graph.code_function import INDENT, Function, commented
from shardlang.graph.code_names import CodeNames, short_name
from shardlang.graph.read_step import source_of
from shardlang.ir.accumulated import Piece
from shardlang.ir.graph import is_item
from shardlang.ir.leaf import Leaf, Result
from shardlang.ir.node import returned_nodes
from shardlang.ir.printed_type import printed_type
from shardlang.ir.step import StepProgram, is_collective, is_wait


class StepCode:
    """Writes forward and backward."""

    def __init__(
        self,
        step: StepProgram,
        parts: Mapping[str, str] | None = None,
        notes: Mapping[str, str] | None = None,
        types: Mapping[fx.Node, TensorType] | None = None,
    ) -> None:
        """Name its variables.

        Args:
            parts: names for parts of gradients, by the names under which the step gives them.
            notes: where values and gradients come from or go to, by these names.
            types: local types on the first device, where they are known already.
        """
        self.step, self.notes = step, notes or {}
        self.types = local_types(step) if types is None else types
        self.forward_nodes, self.back_nodes = (half(step.graph, backward=x) for x in (False, True))
        results, self.gradients = step.returned
        self.results = list(zip(step.results, results, strict=True))
        self.leaves = {leaf.node: leaf for leaf in step.leaves}
        self.names = CodeNames(
            _known(step, parts or {}), {g: v for v, g in step.adjoints.items()},
            {copy: value for value, copy in step.again.items()},
        )  # fmt: skip
        self.names.add([*self.forward_nodes, *self.back_nodes])
        self.saved = self._saved()

    def _saved(self) -> dict[str, fx.Node]:
        """What the forward hands to the backward, by variable."""
        read = {x for node in self.back_nodes for x in node.all_input_nodes}
        found: dict[str, fx.Node] = {}
        for node in self.forward_nodes:
            if node in read:
                found.setdefault(self.names(node), node)
        return found

    def sums(self) -> Mapping[str, str]:
        """The variables of what is summed over microbatches, by name."""
        found = {result.name: self.names(node) for result, node in self.results}
        pairs = zip(self.step.gradients, self.gradients, strict=True)
        return found | {name: self.names(node) for name, node in pairs}

    def head(self) -> str:
        """What holds for all functions."""
        mesh = self.step.mesh
        whose = f"each of {mesh.devices} devices" if mesh.devices > 1 else "the device"
        return f"# mesh {mesh}: {whose} runs this on its own shards"

    def forward_alone(self) -> Iterator[str]:
        """The forward of a program that is not trained."""
        yield self.head()
        yield from self._forward(train=False)

    def forward(self) -> Iterator[str]:
        """From the leaves to the results and what is saved."""
        return self._forward(train=True)

    def _forward(self, train: bool) -> Iterator[str]:
        yield "def forward("
        for leaf in self.step.leaves:
            yield commented(f"{INDENT}{self.names.of(leaf.node)},", self._leaf_text(leaf))
        yield "):"
        ends = {node for _, node in self.results} | set(self.saved.values())
        body = [node for node in self.forward_nodes if node.op == "call_function"]
        yield from Function(self.names, body, ends, self.types).lines()
        yield ""
        yield f"{INDENT}return ("
        for result, node in self.results:
            yield commented(f"{INDENT * 2}{self.names(node)},", self._result_text(result))
        yield f"{INDENT})" + (", (" if train else "")
        if train:
            yield from (f"{INDENT * 2}{name}," for name in self.saved)
            yield f"{INDENT})"

    def backward(self) -> Iterator[str]:
        """From what is saved and the gradients of the results to those of the leaves."""
        yield "def backward("
        function = Function(self.names, self._body(), set(self.gradients), self.types)
        for name, node in self.saved.items():
            leaf = self.leaves.get(node.name)
            said = function.type_of(node) if leaf is None else self._leaf_text(leaf)
            yield commented(f"{INDENT}{name},", said)
        cotangents = [node for node in self.back_nodes if node.op == "placeholder"]
        for name, node in zip(self.step.cotangents, cotangents, strict=True):
            said = f"{self._gradient_text(name)}: {function.type_of(node)}"
            yield commented(f"{INDENT}{self.names(node)},", said)
        yield "):"
        yield from function.lines()
        yield ""
        yield f"{INDENT}return ("
        for name, node in zip(self.step.gradients, self.gradients, strict=True):
            yield commented(f"{INDENT * 2}{self.names(node)},", self._gradient_text(name))
        yield f"{INDENT})"

    def _body(self) -> Sequence[fx.Node]:
        return [node for node in self.back_nodes if node.op == "call_function"]

    def _leaf_text(self, leaf: Leaf) -> str:
        layout = leaf.gathered or leaf.at_rest
        what = self.notes.get(leaf.name) or f"{leaf.kind} {leaf.name}"
        return f"{what}: {printed_type(leaf.dtype, layout)}"

    def _result_text(self, result: Result) -> str:
        what = self.notes.get(result.name) or f"{result.kind} {result.name}"
        return f"{what}: {printed_type(result.dtype, result.layout)}"

    def _gradient_text(self, name: str) -> str:
        return self.notes.get(name) or f"gradient of {name}"


def parts_of(reduce: Piece) -> Iterator[tuple[str, str]]:
    """The parts that are summed, each with a variable after its gradient."""
    given = (node for node in reduce.graph.nodes if node.op == "placeholder")
    names = dict(zip(given, reduce.takes, strict=True))
    for leaf, node in zip(reduce.gives, returned_nodes(reduce.graph), strict=True):
        while is_collective(node) or is_wait(node) or is_item(node):
            node = source_of(node, exactly=True)
        if node in names:
            yield names[node], f"grad_{short_name(leaf)}_part"


def _known(step: StepProgram, parts: Mapping[str, str]) -> Mapping[str, str]:
    """Names that are given: those of leaves, of cotangents and of results."""
    results, _ = step.returned
    cotangents = [n for n in half(step.graph, backward=True) if n.op == "placeholder"]
    found = {node.name: result.name for result, node in zip(step.results, results, strict=True)}
    found |= {n.name: f"grad_{k}" for n, k in zip(cotangents, step.cotangents, strict=True)}
    back = zip(step.gradients, step.returned[1], strict=True)
    names: dict[str, str] = {leaf.name: f"grad_{short_name(leaf.name)}" for leaf in step.leaves}
    names |= parts
    found |= {node.name: names[name] for name, node in back if name in names}
    return found | {leaf.node: short_name(leaf.name) for leaf in step.leaves}
