"""compile: the driver, from a `Spec` to a `LocalProgram`."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import nn

from shardlang.bind import Binding, ModelNames, bind
from shardlang.capture import (
    CallableSource,
    Captured,
    CaptureError,
    HfSource,
    InputSpec,
    ModelSource,
    PythonSource,
    capture,
)
from shardlang.compiler.at_model import at_model
from shardlang.compiler.build import Statements, Storage
from shardlang.compiler.idle_stores import idle_stores
from shardlang.compiler.loss import loss_finding, loss_name, output_nodes, unnamed_loss
from shardlang.compiler.parts import in_order
from shardlang.compiler.precision import check_precision, precision_of
from shardlang.cost.update import UpdateCost
from shardlang.grammar.diagnostics import (
    Diagnostic,
    has_errors,
    join_words,
    quote,
)  # fmt: skip
from shardlang.ir.collection import rarely_collected
from shardlang.ir.graph import ShardError, ShardGraph
from shardlang.ir.leaf import LeafKind, Stored
from shardlang.ir.mesh import Mesh
from shardlang.ir.node import tensor_of
from shardlang.ir.optimizers import ASSUMED, UpdateRule
from shardlang.ir.pipeline.split import Split
from shardlang.ir.printed_type import dtype_name
from shardlang.ir.program import LocalProgram
from shardlang.ir.step_options import StepOptions
from shardlang.passes.pipeline import PIPELINE, Pass
from shardlang.passes.rewrite.localize import to_program
from shardlang.passes.step.decide import decide
from shardlang.passes.step.update_cost import update_cost
from shardlang.spec.types import InputDecl, Spec

DTYPES = {
    dtype_name(dtype): dtype
    for dtype in (
        torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32,
        torch.int16, torch.int8, torch.uint8, torch.bool, torch.complex64, torch.complex128,
    )
}  # fmt: skip
"""The language's dtype names."""


class CompileError(ValueError):
    """A spec that cannot be compiled, with all findings of the stage that failed."""

    def __init__(self, diagnostics: list[Diagnostic]) -> None:
        super().__init__("; ".join(str(d) for d in diagnostics if d.is_error))
        self.diagnostics = diagnostics


@dataclass(slots=True)
class Compiled:
    """All that compiling a spec yields.

    Attributes:
        graph: the graph after all passes; `program.graph` is the same one.
        diagnostics: findings that are not errors.
    """

    spec: Spec
    source: ModelSource
    inputs: tuple[InputSpec, ...]
    captured: Captured
    binding: Binding
    statements: Statements
    graph: ShardGraph
    program: LocalProgram
    diagnostics: list[Diagnostic] = field(default_factory=list)

    @property
    def rule(self) -> UpdateRule:
        """The optimizer; AdamW is assumed where the spec states none."""
        return rule_of(self.spec, self.binding)

    @property
    def train(self) -> bool:
        """Whether the model runs in train mode."""
        return self.source.mode == "train"


def source_of(spec: Spec) -> ModelSource:
    """The model that a spec names.

    Raises:
        CaptureError: the arguments do not fit.
    """
    ref = spec.model
    if ref.kind == "hf":
        return HfSource(ref.path, **ref.kwargs)
    return PythonSource(f"{ref.path}:{ref.function}", ref.kwargs)


def input_specs(spec: Spec, source: ModelSource) -> tuple[InputSpec, ...]:
    """The declared inputs under their full names; patterns stand for all names they match.

    Raises:
        CaptureError: a pattern matches no input.
    """
    found: dict[str, InputSpec] = {}
    for decl in spec.inputs:
        for name in input_names(decl, source):
            found[name] = InputSpec(name, DTYPES[decl.dtype], decl.shape, decl.below)
    return tuple(found.values())


def input_names(decl: InputDecl, source: ModelSource) -> list[str]:
    """The inputs that a declaration speaks of.

    Raises:
        CaptureError: it matches none.
    """
    if decl.name is not None:
        return [decl.name]
    names = decl.pattern.select(source.input_names())
    if not names:
        raise CaptureError(
            "SH0353",
            f"no input of the model matches `{decl.pattern}`",
            help=_help_to_name(decl.pattern.text, source),
            input=decl.pattern.text,
        )
    return names


def _help_to_name(pattern: str, source: ModelSource) -> str:
    """What may be meant by a pattern that matches no input."""
    whole, inside, _ = pattern.partition(".")
    known = source.input_names()
    if inside and whole in known and _takes_cache(source, whole):
        return (
            f"`{whole}` is a key-value cache, which is made of inputs for `model hf(...)` alone:"
            " write that with its configuration, or wrap the model in a module that takes tensors"
            " and makes the cache of them"
        )
    if inside and whole in known:
        return (
            f"what lies in `{whole}` is known by its declaration alone: name each part,"
            f' as in `input "{whole}.0", "{whole}.1"`, or `"{whole}.KEY"` of a dict'
        )
    return f"its inputs are {join_words(quote(known), 'and')}"


def _takes_cache(source: ModelSource, argument: str) -> bool:
    """Whether the forward says that an argument is a cache of Hugging Face transformers."""
    found = source.signature.parameters.get(argument)
    return found is not None and "Cache" in str(found.annotation)


def marked(spec: Spec) -> Callable[[str], bool]:
    """Which modules' inputs and outputs the spec speaks of."""
    patterns = [value.pattern for value in spec.values]
    return lambda name: any(pattern.matches(name) for pattern in patterns)


def names_of(captured: Captured) -> ModelNames:
    """The names that a spec can speak of."""
    tensors = {
        kind: {leaf.name: leaf.shape for leaf in captured.leaves if leaf.kind == kind}
        for kind in ("param", "buffer")
    }
    outputs = output_nodes(captured)
    return ModelNames(
        params=tensors["param"],
        buffers=tensors["buffer"],
        inputs={leaf.name: leaf.shape for leaf in captured.leaves if leaf.kind is LeafKind.INPUT},
        modules=("", *captured.modules),
        outputs={name: tuple(tensor_of(node).shape) for name, node in outputs.items()},
        values={key: tuple(tensor_of(node).shape) for key, node in captured.values.items()},
        aliases={alias: leaf.name for leaf in captured.leaves for alias in leaf.aliases},
    )


def statements_of(spec: Spec, binding: Binding, captured: Captured) -> Statements:
    """What the binding states, in the words of the passes."""
    leaves = {**binding.params, **binding.buffers, **binding.inputs}
    return Statements(
        mesh=spec.mesh,
        data_axes=frozenset(spec.mesh.named(spec.data_axes)),
        leaves=leaves,
        values=binding.values,
        outputs=binding.outputs,
        stores={
            name: Storage(axes, Stored(binding.stores[name].what), binding.stores[name].regather)
            for name, axes in binding.storage.items()
        },
        loss=loss_name(binding, captured),
        fast_random=spec.random == "fast",
        step=_step_options(spec, binding),
    )


def _step_options(spec: Spec, binding: Binding) -> StepOptions:
    """The options of the passes on the step program, in names of the model."""
    recompute = replace(spec.step.recompute, modules=binding.recompute)
    return replace(spec.step, recompute=recompute, precision=precision_of(spec.precision))


@rarely_collected()
def compile_spec(
    spec: Spec,
    source: ModelSource | None = None,
    passes: tuple[Pass, ...] = PIPELINE,
    inputs: tuple[InputSpec, ...] | None = None,
    mesh: Mesh | None = None,
    split: Split | None = None,
    captured: Captured | None = None,
) -> Compiled:
    """Trace the model, bind the spec to its names, and run the passes.

    Args:
        source: the model, instead of the one that the spec names.
        passes: the pipeline, or a part of it.
        inputs: the inputs, instead of those that the spec declares.
        mesh: the mesh with its axes in the parts in which they are used; decided if not given.
        split: the stages of the model.
        captured: the trace of the source on these inputs, if it is there already.

    Raises:
        CompileError: with every finding of the stage that failed.
    """
    try:
        source = source_of(spec) if source is None else source
        source = source.computing(precision_of(spec.precision).compute)
        inputs = input_specs(spec, source) if inputs is None else inputs
        captured = captured or capture(source, inputs, marked(spec))
    except CaptureError as failure:
        raise CompileError([at_model(failure, spec)]) from failure
    binding, found = bind(spec, names_of(captured))
    if binding is None or has_errors(found):
        raise CompileError(found)
    found += [replace(at_model(r, spec), severity=r.severity) for r in captured.remarks]
    statements = replace(statements_of(spec, binding, captured), split=split)
    if source.mode == "train" and (finding := loss_finding(spec, statements.loss, captured)):
        raise CompileError([*found, finding])
    if source.mode == "train":
        unnamed = unnamed_loss(spec, statements.loss, captured)
        found += [*check_precision(spec, captured), *([unnamed] if unnamed else [])]
    if has_errors(found):
        raise CompileError(found)
    try:
        statements, graph = in_order(captured, statements, source.mode == "train", passes, mesh)
    except ShardError as failure:
        raise CompileError([*found, at_model(failure, spec)]) from failure
    for refusal in graph.info.refusals:
        found.append(replace(at_model(refusal, spec), severity="note"))
    program = to_program(graph) if passes is PIPELINE else _no_program(graph)
    try:
        trained = [leaf.name for leaf in program.leaves if leaf.trainable]
        trained = trained if source.mode == "train" else []
        trained = [] if program.loss and _weighs_microbatches(spec) else trained
        program.step = decide(program, trained, _update(spec, rule_of(spec, binding), program))
    except ShardError as failure:
        raise CompileError([*found, at_model(failure, spec)]) from failure
    statements = replace(statements, step=program.step)
    found += idle_stores(spec, binding, program) if passes is PIPELINE else []
    return Compiled(spec, source, inputs, captured, binding, statements, graph, program, found)


def _weighs_microbatches(spec: Spec) -> bool:
    """Whether a budget of `recompute` holds for several microbatches, whose program comes later."""
    several = spec.accumulate is not None and spec.accumulate.count > 1
    return spec.step.recompute.budget_bytes is not None and several


def rule_of(spec: Spec, binding: Binding) -> UpdateRule:
    """The optimizer that a spec states, and its groups."""
    stated = spec.optimizer
    chosen = ASSUMED if stated is None else UpdateRule(stated.name, stated.kwargs)
    return replace(chosen, groups=binding.groups)


def _update(spec: Spec, rule: UpdateRule, program: LocalProgram) -> UpdateCost:
    """What the update of all that is trained takes."""
    leaves = [leaf for leaf in program.leaves if leaf.trainable]
    return update_cost(program, leaves, rule, precision_of(spec.precision))


def _no_program(graph: ShardGraph) -> LocalProgram:
    """An empty program, where the passes stop before one exists."""
    return LocalProgram(graph.mesh, graph.graph, (), (), step=graph.step)


def module_source(model: nn.Module | Callable[[], nn.Module]) -> ModelSource:
    """A source for a model that the user's program has built, or builds."""
    if isinstance(model, nn.Module):
        mode = "train" if model.training else "eval"
        return CallableSource(functools.partial(_itself, model), mode, keeps_modes=True)
    return CallableSource(model)


def _itself(model: nn.Module) -> nn.Module:
    import copy

    return copy.deepcopy(model)


def inputs_from_examples(examples: Mapping[str, torch.Tensor]) -> tuple[InputSpec, ...]:
    """Input declarations from example tensors, integers bounded by what they hold."""
    return tuple(
        InputSpec(
            name, value.dtype, tuple(value.shape),
            None if value.is_floating_point() or value.numel() == 0 else int(value.max()) + 1,
        )
        for name, value in examples.items()
    )  # fmt: skip
