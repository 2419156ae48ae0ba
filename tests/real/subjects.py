"""What is run: a model, a layout of it, and its batches."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from shardlang.capture import (
    Captured,
    InputSpec,
    ModelSource,
    capture,
    make_inputs,
    raise_to_float64,
    raised_dtype,
)
from shardlang.compiler.build import Statements, Storage, build_graph
from shardlang.compiler.driver import Compiled, CompileError, compile_spec
from shardlang.compiler.variants import Programs, compiled_for
from shardlang.ir.graph import ShardError
from shardlang.ir.program import LocalProgram
from shardlang.passes.pipeline import run_passes
from shardlang.passes.rewrite.localize import to_program
from shardlang.runtime.calls import Given
from shardlang.spec import load_spec
from tests.random_programs import random_subject

Batch = dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class Subject:
    """A model laid out on a mesh; `compiled`, up to the passes, if it comes from a spec."""

    captured: Captured
    statements: Statements
    source: ModelSource
    inputs: tuple[InputSpec, ...]
    compiled: Compiled | None = None

    def program(self) -> LocalProgram:
        """The program of one device, with every floating value raised to float64."""
        raised = raise_to_float64(self.captured.graph)
        return to_program(run_passes(build_graph(self.captured, self.statements, raised)))

    def batches(self, steps: int, seed: int) -> list[Batch]:
        """Whole batches, raised: the model's own, else random ones."""
        own = self.source.batches(seed)
        made = own if own is not None else self._random(seed)
        return [
            {spec.name: _raised(batch[spec.name]) for spec in self.inputs}
            for batch in itertools.islice(made, steps)
        ]

    def _random(self, seed: int) -> Iterator[Mapping[str, Tensor]]:
        for step in itertools.count():
            yield make_inputs(self.source, self.inputs, seed + step)

    def resized(self, shapes: Mapping[str, tuple[int, ...]]) -> Subject:
        """The same for inputs of other shapes; itself for its own."""
        if all(shapes[spec.name] == spec.shape for spec in self.inputs):
            return self
        assert self.compiled is not None
        given = (Given(spec.name, spec.dtype, shapes[spec.name]) for spec in self.inputs)
        call = replace(Programs(self.compiled).declared, inputs=tuple(given))
        done = replace(self.compiled, program=self.program())
        return _of_compiled(compiled_for(done, call), self.statements.stores)

    def variants(self) -> dict[str, Subject]:
        """As it is, and where parameters are stored, with all of them gathered again."""
        again = {n: Storage(s.axes, regather=True) for n, s in self.statements.stores.items()}
        if again == self.statements.stores:
            return {"": self}
        regather = replace(self, statements=replace(self.statements, stores=again))
        return {"": self, "regather": regather}


def _raised(value: Tensor) -> Tensor:
    return value.to(raised_dtype(value.dtype))


def _of_compiled(done: Compiled, stores: Mapping[str, Storage] | None = None) -> Subject:
    statements = done.statements if stores is None else replace(done.statements, stores=stores)
    return Subject(done.captured, statements, done.source, done.inputs, done)


def from_spec(path: str, sets: Mapping[str, str]) -> Subject:
    """The subject of a spec.

    Raises:
        CompileError: the spec has errors.
    """
    spec, findings = load_spec(Path(path), dict(sets))
    if spec is None:
        raise CompileError(findings)
    return _of_compiled(compile_spec(spec))


def from_random(seed: int) -> Subject:
    """A random program under a random layout that the compiler accepts."""
    for trial in itertools.count():
        source, inputs, place = random_subject(seed, trial)
        captured = capture(source, inputs, lambda name: name.startswith("parts."))
        subject = Subject(captured, place(captured), source, tuple(inputs))
        try:
            subject.program()
        except ShardError:
            continue
        return subject
    raise AssertionError
