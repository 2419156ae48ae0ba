"""The picture of a pipeline: a frame for each stage, and what is sent from one to another."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

from shardlang.compiler.driver import Compiled
from shardlang.compiler.pipelined import Pipelined
from shardlang.compiler.whole_step import WholeStep, half, trained_by
from shardlang.grammar.words import counted
from shardlang.graph.fold_stages import fold_stages
from shardlang.graph.picture import Arrow, Box, BoxKind, Picture
from shardlang.graph.read_step import HalfReader
from shardlang.graph.repeats import fold_repeats
from shardlang.graph.step_picture import (
    BACKWARD,
    FORWARD,
    Frame,
    computes,
    folded,
    give,
    piece_picture,
    put,
)
from shardlang.graph.update_picture import CLIP, OPTIMIZER, update_picture
from shardlang.ir.leaf import Leaf
from shardlang.ir.pipeline.stage import StageProgram
from shardlang.passes.step.write_update import write_update
from shardlang.plan.moments import Phase
from shardlang.plan.stages import transfers_in
from shardlang.plan.text import bytes_text


def stages_picture(
    compiled: Compiled, made: Pipelined, factored: bool, phases: Collection[Phase]
) -> Picture:
    """The picture of some phases of the step of a pipeline.

    Args:
        factored: whether repeated layers, and stages that are alike, are drawn once.
    """
    picture = _Writing(compiled, made, phases).picture()
    if not factored:
        return picture
    return fold_stages(fold_repeats(picture), [frame_of(n) for n in range(len(made.step.stages))])


def frame_of(stage: int) -> str:
    """The frame of a stage."""
    return f"stage {stage}"


@dataclass(slots=True)
class _Writing:
    """A picture while it is written.

    Attributes:
        sent: the box that sends a value, by its name and the stage that gets it.
        got: the box in which it arrives, likewise.
    """

    compiled: Compiled
    pipeline: Pipelined
    phases: Collection[Phase]
    made: Picture = field(default_factory=Picture)
    sent: dict[tuple[str, int], str] = field(default_factory=dict)
    got: dict[tuple[str, int], str] = field(default_factory=dict)
    ends: list[str] = field(default_factory=list)
    step: WholeStep = field(init=False)

    def __post_init__(self) -> None:
        whole = self.pipeline.step.whole
        update = write_update(self.compiled.program, trained_by(self.compiled))
        self.step = WholeStep(whole.main, update if update.names else None, whole)

    def picture(self) -> Picture:
        """Stages in order, what is done once, and the arrows between them."""
        whole = self.pipeline.step.whole
        if Phase.FORWARD in self.phases and whole.early.gives:
            early = piece_picture(self.step, whole.early, "totals")
            put(self.made, Frame("in every stage before all", early, whole.axis.size))
        for stage in self.pipeline.step.stages:
            for phase, write in self._halves().items():
                if phase in self.phases:
                    write(stage)
        if Phase.FORWARD in self.phases:
            finish = piece_picture(self.step, whole.finish, whole.loss.name)
            put(self.made, Frame("behind all forwards", finish))
        if Phase.UPDATE in self.phases:
            put(self.made, Frame("update", update_picture(self.compiled, self.step)))
        self._connect()
        return self.made

    def _halves(self) -> Mapping[Phase, Callable[[StageProgram], None]]:
        return {Phase.FORWARD: self._forward, Phase.BACKWARD: self._backward}

    def _forward(self, stage: StageProgram) -> None:
        results, _ = stage.step.returned
        pairs = list(zip(stage.step.results, results, strict=True))
        own = [pair for pair in pairs if pair[0].name not in stage.gives]
        reader = HalfReader(half(stage.step.graph, backward=False), _leaves(stage), own)
        picture = reader.picture()
        for name, source in stage.values.items():
            if name in picture.boxes:
                picture.add(_arrival(picture.boxes[name], source))
        for result, node in pairs:
            for target in stage.gives.get(result.name, ()):
                give(picture, reader, [node], _departure(result.name, target))
        names = put(self.made, self._frame(stage, "forward", folded(picture, FORWARD)))
        self._note(stage, stage.values, stage.gives, names)

    def _backward(self, stage: StageProgram) -> None:
        _, given = stage.step.returned
        cotangents = [n for n in half(stage.step.graph, backward=True) if n.op == "placeholder"]
        reader = HalfReader(
            half(stage.step.graph, backward=True), _leaves(stage),
            cotangents=frozenset(node.name for node in cotangents),
        )  # fmt: skip
        picture = reader.picture()
        for name, source in stage.gradients.items():
            if name in picture.boxes:
                picture.add(_arrival(picture.boxes[name], source))
        pairs = list(zip(stage.step.gradients, given, strict=True))
        own = [node for name, node in pairs if name not in stage.returns]
        if own:
            said = counted(len(own), "gradient") + ", summed"
            give(picture, reader, own, Box("summed", BoxKind.OUTPUT, "", (said,)))
        for name, node in pairs:
            for target in stage.returns.get(name, ()):
                give(picture, reader, [node], _departure(name, target))
        names = put(self.made, self._frame(stage, "backward", folded(picture, BACKWARD)))
        self._note(stage, stage.gradients, stage.returns, names)
        self.ends.append(self._reduced(stage, names))

    def _reduced(self, stage: StageProgram, names: Mapping[str, str]) -> str:
        """The box of the gradients of a stage, reduced where something is to be reduced."""
        piece = self.pipeline.step.reduces[stage.number]
        if not computes(piece):
            return names.get("summed", "")
        frame = Frame(
            f"{frame_of(stage.number)}.behind all", piece_picture(self.step, piece, "reduced")
        )
        return put(self.made, frame)["reduced"]

    def _frame(self, stage: StageProgram, title: str, picture: Picture) -> Frame:
        times = self.pipeline.step.whole.axis.size
        return Frame(f"{frame_of(stage.number)}.{title}", picture, times)

    def _note(
        self,
        stage: StageProgram,
        comes: Mapping[str, int],
        goes: Mapping[str, tuple[int, ...]],
        names: Mapping[str, str],
    ) -> None:
        """Where what comes and goes is drawn."""
        self.got |= {(name, stage.number): names[name] for name in comes if name in names}
        for name, targets in goes.items():
            for target in targets:
                self.sent[name, target] = names[_departure(name, target).id]

    def _connect(self) -> None:
        """Transfers with their bytes, and gradients with the update."""
        sizes = transfers_in(self.pipeline)
        for key, source in self.sent.items():
            if key in self.got:
                size, count = sizes[key[0]], self.pipeline.step.whole.axis.size
                lines = (f"{bytes_text(size)} ×{count}",)
                self.made.connect(Arrow(source, self.got[key], lines))
        first = CLIP if CLIP in self.made.boxes else OPTIMIZER
        for name in filter(None, self.ends):
            if first in self.made.boxes:
                self.made.connect(Arrow(name, first))
        if {CLIP, OPTIMIZER} <= self.made.boxes.keys():
            self.made.connect(Arrow(CLIP, OPTIMIZER))


def _leaves(stage: StageProgram) -> dict[str, Leaf]:
    return {leaf.node: leaf for leaf in stage.step.leaves}


def _arrival(box: Box, source: int) -> Box:
    """A value, or a gradient, that another stage gives."""
    lines = box.lines[1:]
    return Box(box.id, BoxKind.INPUT, "", (f"from stage {source}", *lines))


def _departure(name: str, target: int) -> Box:
    return Box(
        f"{name} to {target}", BoxKind.RESHARD, "", (f"send to stage {target}",), "send_recv"
    )
