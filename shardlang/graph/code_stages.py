"""The step of a device of a pipeline as readable Python: the text of one of its stages.

The functions are those that the device runs for each action, and `step` runs the actions of the
stage in the order of its rank.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import fx

from shardlang.compiler.driver import Compiled
from shardlang.compiler.in_stages import in_stages
from shardlang.compiler.pipelined import Pipelined
from shardlang.compiler.whole_step import trained_by
from shardlang.cost.effects import TensorType
from shardlang.cost.live import local_types
from shardlang.graph.code_function import INDENT, Function, commented
from shardlang.graph.code_order import StageOrder
from shardlang.graph.code_pieces import piece_lines, update_lines
from shardlang.graph.code_step import StepCode, parts_of
from shardlang.ir.pipeline.action import Work
from shardlang.ir.pipeline.stage import StageProgram
from shardlang.ir.pipeline.staged import StagedStep, nodes_of
from shardlang.ir.step import StepProgram
from shardlang.passes.step.write_update import write_update

HALVES = {Work.INPUT: "backward_inputs", Work.WEIGHT: "backward_weights"}
"""The functions of a backward in two parts."""


def stage_lines(compiled: Compiled, made: Pipelined, number: int) -> Iterator[str]:
    """The text of a stage: its functions, and the order in which they run."""
    step, whole = made.step, made.step.whole
    code = StageCode(step, number)
    works = {action.work for action in made.schedule if action.stage == number}
    yield _head(made, number)
    if whole.early.gives:
        yield from ("", *piece_lines("early", whole.early, code.sums()), "")
    yield from ("", *code.forward())
    if Work.BACKWARD in works:
        yield from ("", "", *code.backward())
    if Work.INPUT in works:
        yield from code.halves()
    yield from ("", "", *piece_lines("finish", whole.finish, code.sums()))
    if step.reduces[number].gives:
        yield from ("", "", *piece_lines("reduce", step.reduces[number], code.sums()))
    placed = in_stages(compiled)
    update = write_update(placed.program, trained_by(compiled))
    if update.names:
        yield from ("", "", *update_lines(update, whole.main.leaves))
    yield from ("", "", *StageOrder(placed, made, code.stage, code).lines(bool(update.names)))


def _head(made: Pipelined, number: int) -> str:
    """Which devices run the text."""
    mesh = made.along.program.mesh
    rank, axis = made.schedule.rank_of()[number], made.axis
    devices = mesh.devices // mesh.axes[0].size // axis.size
    whose = f"each of {devices} devices" if devices > 1 else "the device"
    return (
        f"# mesh {mesh}: stage {number} of {made.schedule.stages};"
        f" {whose} at {axis.name} = {rank} runs this on its own shards"
    )


class StageCode(StepCode):
    """Writes the functions of a stage.

    Attributes:
        stage: its program, with what the whole step knows of gradients and copies.
    """

    def __init__(self, step: StagedStep, number: int) -> None:
        stage, whole = step.stages[number], step.whole.main
        here = {node.name for node in stage.step.graph.nodes}
        pairs = [
            {a: b for a, b in known.items() if a in here and b in here}
            for known in (whole.adjoints, whole.again)
        ]
        program = replace(stage.step, adjoints=pairs[0], again=pairs[1])
        self.stage = replace(stage, step=program)
        parts, types = dict(parts_of(step.reduces[number])), _types(whole, program)
        super().__init__(program, parts, _notes(stage), types)

    def halves(self) -> Iterator[str]:
        """The backward in two parts: for the inputs, then for the weights."""
        rows = {work: nodes_of(self.stage, work) for work in HALVES}
        late = set(rows[Work.WEIGHT])
        ends = list(zip(self.step.gradients, self.gradients, strict=True))
        kept = self._kept(rows[Work.WEIGHT])
        given = [(self.names(x), x) for x in kept.values()]
        first = _Half("backward_inputs", rows[Work.INPUT], [e for e in ends if e[1] not in late])
        second = _Half("backward_weights", rows[Work.WEIGHT], [e for e in ends if e[1] in late])
        saved = [*self.saved.items(), *((self.names(x), x) for x in self._cotangents())]
        yield from ("", "", *self._half(first, saved, kept))
        yield from ("", "", *self._half(second, given, None))

    def _kept(self, nodes: Sequence[fx.Node]) -> dict[str, fx.Node]:
        """What some calls read that they do not make, by variable."""
        made, found = set(nodes), dict[str, fx.Node]()
        for node in nodes:
            for x in node.all_input_nodes:
                if x not in made:
                    found.setdefault(self.names(x), x)
        return found

    def _cotangents(self) -> list[fx.Node]:
        return [node for node in self.back_nodes if node.op == "placeholder"]

    def _half(
        self, half: _Half, given: Iterable[tuple[str, fx.Node]], kept: Mapping[str, fx.Node] | None
    ) -> Iterator[str]:
        ends = {*(x for _, x in half.ends), *(kept or {}).values()}
        function = Function(self.names, half.nodes, ends, self.types)
        yield f"def {half.title}("
        for name, node in given:
            yield commented(f"{INDENT}{name},", function.type_of(node))
        yield "):"
        yield from function.lines()
        yield ""
        yield f"{INDENT}return ("
        for name, node in half.ends:
            yield commented(f"{INDENT * 2}{self.names(node)},", self._gradient_text(name))
        yield f"{INDENT})" + ("" if kept is None else ", (")
        if kept is not None:
            yield from (f"{INDENT * 2}{name}," for name in kept)
            yield f"{INDENT})"


@dataclass(frozen=True, slots=True)
class _Half:
    """A part of a backward.

    Attributes:
        ends: the gradients that it gives, by name.
    """

    title: str
    nodes: Sequence[fx.Node]
    ends: Sequence[tuple[str, fx.Node]]


def _types(whole: StepProgram, stage: StepProgram) -> dict[fx.Node, TensorType]:
    """The local types of a stage's values, as the whole step has them."""
    known = {node.name: found for node, found in local_types(whole).items()}
    return {node: known[node.name] for node in stage.graph.nodes if node.name in known}


def _notes(stage: StageProgram) -> dict[str, str]:
    """Where values and gradients come from, and to which stages they go."""
    came = {**stage.values, **stage.gradients}
    gone = {**stage.gives, **stage.returns}
    found = {name: f"from stage {source}" for name, source in came.items()}
    for name, targets in gone.items():
        words = "stage" if len(targets) == 1 else "stages"
        found[name] = f"to {words} {', '.join(map(str, targets))}"
    return found
