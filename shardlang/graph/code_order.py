"""The function that runs the actions of a stage: what comes in, what is computed, what goes out."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence

from shardlang.compiler.driver import Compiled
from shardlang.compiler.pipelined import Pipelined
from shardlang.graph.code_function import INDENT, commented
from shardlang.graph.code_names import short_name
from shardlang.graph.code_pieces import optimizer_lines
from shardlang.graph.code_step import StepCode
from shardlang.ir.leaf import ResultKind
from shardlang.ir.pipeline.action import Action, Work
from shardlang.ir.pipeline.stage import StageProgram
from shardlang.ir.printed_type import dtype_name
from shardlang.runtime.stages.shared import Round

_DEEP, _WIDEST = INDENT * 3, 100


class StageOrder:
    """Writes `ACTIONS` and `step` of a stage."""

    def __init__(
        self, compiled: Compiled, made: Pipelined, stage: StageProgram, code: StepCode
    ) -> None:
        """`compiled`: with every parameter in its stage."""
        self.compiled, self.made, self.stage, self.code = compiled, made, stage, code
        self.rank_of, self.axis = made.schedule.rank_of(), made.axis.name
        self.rank = self.rank_of[stage.number]
        row = made.schedule.ranks[self.rank]
        self.own = [action for action in row if action.stage == stage.number]
        self.late = any(action.work is Work.WEIGHT for action in self.own)
        results, _ = stage.step.returned
        self.results = list(zip(stage.step.results, map(code.names, results), strict=True))

    def lines(self, updates: bool) -> Iterator[str]:
        """All of it.

        Args:
            updates: whether values are gathered after the update.
        """
        yield from self._actions()
        whole = self.made.step.whole
        yield commented("def step(microbatches, optimizer):", f"{whole.axis.size} of them")
        yield from self._tied_values()
        if whole.early.gives:
            call = f"{INDENT}totals = summed(early(*leaves) for leaves in microbatches)"
            yield commented(call, "in every stage")
        wide = "" if whole.wide is None else f"sums in {dtype_name(whole.wide)}"
        yield commented(f"{INDENT}sums, parts, buffers = zeros(), zeros(), {{}}", wide)
        yield f"{INDENT}saved, late = {{}}, {{}}" if self.late else f"{INDENT}saved = {{}}"
        yield f"{INDENT}for work, number in ACTIONS:"
        for work in dict.fromkeys(action.work for action in self.own):
            yield f'{INDENT * 2}if work == "{work.value}":'
            yield from self._work(work)
        yield from self._end(updates)

    def _actions(self) -> Iterator[str]:
        """The row of the rank, and what of it is the stage's."""
        row = self.made.schedule.ranks[self.rank]
        said = f"rank {self.rank} along {self.axis} runs {' '.join(map(str, row))}"
        yield from (f"# {line}" for line in textwrap.wrap(said, _WIDEST - 2))
        yield "ACTIONS = ("
        line = INDENT
        for pair in map(_pair, self.own):
            if len(line) + len(pair) > _WIDEST:
                yield line.rstrip()
                line = INDENT
            line += f"{pair}, "
        yield line.rstrip()
        yield ")"
        yield from ("", "")

    def _work(self, work: Work) -> Iterator[str]:
        if work is Work.FORWARD:
            yield from self._forward()
        elif work is Work.WEIGHT:
            yield f"{_DEEP}parts.add(backward_weights(*late.pop(number)))"
        else:
            yield from self._backward(work)

    def _forward(self) -> Iterator[str]:
        stage, early = self.stage, self.made.step.whole.early.gives
        nodes = {leaf.name: leaf.node for leaf in stage.step.leaves}
        came = {self.code.names.of(nodes[name]): source for name, source in stage.values.items()}
        yield from self._receive(came)
        given = ["*microbatches[number]", *(["*totals"] if early else []), *came]
        ends = [name for _, name in self.results]
        call = f"forward({', '.join(given)})"
        yield from _unpacked(f"{_tuple(ends)}, saved[number]", call)
        yield from self._send({self.code.names.of(x): to for x, to in stage.gives.items()})
        for result, name in self.results:
            if result.kind is ResultKind.MUTATION:
                yield f'{_DEEP}buffers["{result.name}"] = {name}'
            elif result.name not in stage.gives:
                yield f"{_DEEP}sums.add({name})"

    def _backward(self, work: Work) -> Iterator[str]:
        stage = self.stage
        came = {self.code.names.of(x): source for x, source in stage.gradients.items()}
        yield from self._receive(came)
        seeds = [self._seed()] * (len(stage.step.cotangents) - len(came))
        title = "backward" if work is Work.BACKWARD else "backward_inputs"
        call = f"{title}({', '.join(['*saved.pop(number)', *seeds, *came])})"
        gone = {self.code.names.of(x): to for x, to in stage.returns.items()}
        ends = _tuple(["*gradients", *gone])
        yield from _unpacked(ends if work is Work.BACKWARD else f"{ends}, late[number]", call)
        yield from self._send(gone)
        yield f"{_DEEP}parts.add(gradients)"

    def _seed(self) -> str:
        scaled = self.compiled.program.step.precision.loss_scale is not None
        return "optimizer.loss_scale" if scaled else "1.0"

    def _receive(self, came: Mapping[str, int]) -> Iterator[str]:
        for name, source in came.items():
            yield commented(f"{_DEEP}{name} = receive(stage={source})", self._where(source))

    def _send(self, gone: Mapping[str, Sequence[int]]) -> Iterator[str]:
        for name, targets in gone.items():
            for target in targets:
                yield commented(f"{_DEEP}send({name}, stage={target})", self._where(target))

    def _where(self, stage: int) -> str:
        """The rank of a stage along the axis."""
        rank = self.rank_of[stage]
        return "on this device" if rank == self.rank else f"{self.axis} = {rank}"

    def _tied_values(self) -> Iterator[str]:
        """Parameters that several stages read, which the first of them holds."""
        for copy, first, source, target in self._tied():
            if source == self.stage.number:
                yield f"{INDENT}send({short_name(first)}, stage={target})"
            else:
                line = f"{INDENT}{short_name(copy)} = receive(stage={source})"
                yield commented(line, f"tied: {first}, a leaf of every microbatch")

    def _tied_gradients(self) -> Iterator[str]:
        trained = {name for piece in self.made.step.reduces for name in piece.gives}
        for copy, first, source, target in self._tied():
            if copy in trained and source == self.stage.number:
                yield f'{INDENT}gradients.add("{first}", receive(stage={target}))'
            elif copy in trained:
                yield f'{INDENT}send(gradients.pop("{copy}"), stage={source})'

    def _tied(self) -> Iterator[tuple[str, str, int, int]]:
        """The tied parameters of the stage: copy, original, and their stages."""
        stages = self.made.step.stages
        at = {leaf.name: one.number for one in stages for leaf in one.step.leaves}
        for copy, first in self.made.step.tied.items():
            if self.stage.number in (at[first], at[copy]):
                yield copy, first, at[first], at[copy]

    def _end(self, updates: bool) -> Iterator[str]:
        """What is done once, behind all actions."""
        shared, over = Round.of(self.made.step), f'"{self.axis}"'
        yield commented(f"{INDENT}sums = all_reduce(sums, {over})", "the other stages add zeros")
        for name in shared.read:
            yield f"{INDENT}{short_name(name)} = all_reduce({short_name(name)}, {over})"
        yield f"{INDENT}results = finish(*sums)"
        if shared.buffers:
            yield f"{INDENT}buffers = all_reduce(buffers, {over})"
        if self.made.step.reduces[self.stage.number].gives:
            yield commented(f"{INDENT}gradients = reduce(*parts)", "of this stage alone")
        yield from self._tied_gradients()
        for name in shared.scalars:
            yield f'{INDENT}gradients["{name}"] = all_reduce(gradients["{name}"], {over})'
        yield from optimizer_lines(self.compiled, updates)
        yield f"{INDENT}return results"


def _pair(action: Action) -> str:
    return f'("{action.work.value}", {action.microbatch})'


def _tuple(names: Sequence[str]) -> str:
    return f"({', '.join(names)}{',' * (len(names) == 1)})"


def _unpacked(names: str, call: str) -> Iterator[str]:
    """What a call gives, under names; both on lines of their own if they are too long."""
    line = f"{_DEEP}{names} = {call}"
    if len(line) <= _WIDEST:
        yield line
        return
    width = _WIDEST - len(_DEEP) - len(INDENT)
    yield f"{_DEEP}("
    yield from (f"{_DEEP}{INDENT}{one}" for one in textwrap.wrap(names, width))
    yield f"{_DEEP}) = ("
    yield from (f"{_DEEP}{INDENT}{one}" for one in textwrap.wrap(call, width))
    yield f"{_DEEP})"
