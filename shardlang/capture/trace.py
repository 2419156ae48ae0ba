"""Tracing a model: `torch.export` on fake tensors, then normalization."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import fx, nn

from shardlang.capture.aliases import check_aliases
from shardlang.capture.checks import checks_hold, left_out
from shardlang.capture.compute import fold_casts
from shardlang.capture.data_access import data_as_detach
from shardlang.capture.deferred import Deferred
from shardlang.capture.errors import CaptureError, model_line
from shardlang.capture.failures import explain_failure
from shardlang.capture.held import Path, held_tensors, same_memory
from shardlang.capture.hf_patches import export_patches
from shardlang.capture.index_bounds import check_bounds
from shardlang.capture.init_ops import refuse_truncated
from shardlang.capture.mark import marking
from shardlang.capture.mixed_types import refuse_mixed_products
from shardlang.capture.naming import (
    NamedGraph,
    annotate,
    bind_leaves,
    is_outside_state,
    name_graph,
    strip_prefix,
)
from shardlang.capture.nest import Skeleton, skeleton, tensors
from shardlang.capture.own_backward import check_own_backwards
from shardlang.capture.recorded import CannotReplayError
from shardlang.capture.seeding import refuse_seeding
from shardlang.capture.setting import as_in_training
from shardlang.capture.silence import quiet
from shardlang.capture.source import InputSpec, ModelSource
from shardlang.capture.stacks import full_stacks
from shardlang.capture.state import Remark, Snapshot
from shardlang.capture.types import Captured
from shardlang.capture.untraceable import (
    Assigned,
    check_output,
    refuse_freezing,
    refuse_shared,
    refuse_sparse_gradients,
    refuse_untraceable,
)
from shardlang.ir.compat import code_on_demand
from shardlang.ir.leaf import Leaf, ResultKind
from shardlang.ir.node import info
from shardlang.passes.errors import PassError
from shardlang.passes.normalize.normalize import normalize


def _nothing(_: str) -> bool:
    return False


def capture(
    source: ModelSource, inputs: Sequence[InputSpec], mark: Callable[[str], bool] = _nothing
) -> Captured:
    """Trace a model on inputs of the declared shapes.

    `mark` says of which modules to record the inputs and outputs. No parameter is allocated.

    Raises `CaptureError` if the model cannot be built, does not fit the inputs, or does something
    that cannot be traced or sharded.
    """
    specs = {spec.name: spec for spec in inputs}
    source.check_inputs(specs)
    call = _Call(source, tuple(specs))
    try:
        with as_in_training(), source.setting.applied(source.deferred.module):
            program = _export(call, source.deferred, list(specs.values()), mark)
            captured = _finish(source, call, program, specs)
    except PassError as error:
        raise CaptureError(
            error.code, error.message, help=error.help, source=error.source
        ) from None
    check_bounds(captured, inputs)
    return captured


class _Seen:
    """What tracing observes; export resets the attributes of modules, so it is kept apart."""

    output: Skeleton | None = None
    remarks: tuple[Remark, ...] = ()
    replaced: Mapping[str, torch.Tensor] = {}
    checks: tuple[str, ...] = ()


class _Call(nn.Module):
    """The model behind a flat signature: tensors in declared order, tensors out."""

    def __init__(self, source: ModelSource, names: tuple[str, ...]) -> None:
        super().__init__()
        self.model_ = source.deferred.module
        self.source = source
        self.names = names
        self.seen = _Seen()

    def forward(self, *flat: torch.Tensor) -> tuple[torch.Tensor, ...]:
        before = Snapshot.of(self.model_)
        assigned = Assigned(self.model_)
        with refuse_freezing(self.model_):
            result = self.source.call(self.model_, dict(zip(self.names, flat, strict=True)))
        check_output(result)
        self.seen.output = skeleton(result)
        self.seen.remarks = tuple(before.remarks(Snapshot.of(self.model_)))
        given = assigned.write([tensor for _, tensor in tensors(result)])
        self.seen.replaced = assigned.replaced
        return given


def _export(
    call: _Call, deferred: Deferred, specs: list[InputSpec], mark: Callable[[str], bool]
) -> torch.export.ExportedProgram:
    """Run `torch.export` and turn its failures into one clear error."""
    with deferred.fake_mode:
        fakes = tuple(
            torch.empty(spec.shape, dtype=spec.dtype, requires_grad=spec.differentiable)
            for spec in specs
        )
    train = call.source.mode == "train"
    try:
        with (
            quiet(), refuse_untraceable(train) as used, export_patches(specs),
            marking(call.model_, mark), full_stacks(), code_on_demand(), data_as_detach(),
            checks_hold() as checks, refuse_seeding(), refuse_truncated(),
        ):  # fmt: skip
            program = torch.export.export(call, fakes, strict=False)
        call.seen.checks = tuple(checks)
        check_own_backwards(used)
        if call.seen.remarks and deferred.recorded:
            call.seen.remarks = _lasting(call, fakes, specs)
        return program
    except CaptureError as error:
        source = error.source or model_line(error)
        raise CaptureError(error.code, error.message, help=error.help, source=source) from None
    except Exception as error:
        raise explain_failure(error, call.source.advice) from error


def _lasting(
    call: _Call, fakes: Sequence[torch.Tensor], specs: list[InputSpec]
) -> tuple[Remark, ...]:
    """The remarks that a second forward gives too: what it only sets up once needs none."""
    output, first, replaced = call.seen.output, call.seen.remarks, call.seen.replaced
    try:
        with quiet(), export_patches(specs), checks_hold(), call.source.deferred.fake_mode:
            call(*fakes)
            call(*fakes)
    except Exception:
        return first
    finally:
        call.seen.output, call.seen.replaced = output, replaced
    return call.seen.remarks


def _finish(
    source: ModelSource,
    call: _Call,
    program: torch.export.ExportedProgram,
    specs: Mapping[str, InputSpec],
) -> Captured:
    """Name everything in an exported program and normalize it."""
    output = call.seen.output
    assert output is not None
    traced = program.graph_module
    for part in traced.modules():
        if isinstance(part, fx.GraphModule):
            annotate(part.graph)
    leaves = bind_leaves(program, source.deferred.module, specs)
    made = normalize(traced, call.seen.replaced)
    leaves = fold_casts(made.graph, leaves, source.compute)
    named = name_graph(made.graph, leaves, made.final, output.names)
    refuse_mixed_products(named.graph, named.leaves, source.compute)
    checks = [*call.seen.checks, *made.checks]
    if source.mode == "train":
        refuse_sparse_gradients(named.graph, named.leaves)
    refuse_shared(source.deferred.module, sorted(call.seen.replaced))
    values = _held_values(source.deferred, program)
    places = _places(source.deferred.module, values, named)
    written = {result.name for result in named.results if result.kind is ResultKind.MUTATION}
    everything = dict(source.deferred.module.named_parameters()) | values
    check_aliases(named.leaves, everything, written, places)
    named_first = {n: leaf.name for leaf in named.leaves for n in (leaf.name, *leaf.aliases)}
    return Captured(
        graph=named.graph,
        leaves=named.leaves,
        results=named.results,
        values=named.values,
        repeats=named.repeats,
        modules=tuple(name for name, _ in source.deferred.module.named_modules() if name),
        constants=_constants(source.deferred, values, named),
        held=places,
        replaced=frozenset(named_first[name] for name in call.seen.replaced),
        output=output,
        forward_names=source.forward_names,
        remarks=(*call.seen.remarks, *([left_out(checks)] if checks else [])),
    )


def _held_values(
    deferred: Deferred, program: torch.export.ExportedProgram
) -> dict[str, torch.Tensor]:
    """The tensors, fake ones among them, of everything that is neither a parameter nor an input."""
    buffers = dict(deferred.module.named_buffers(remove_duplicate=False))
    return {strip_prefix(name): value for name, value in program.constants.items()} | buffers


def _places(
    module: nn.Module, values: Mapping[str, torch.Tensor], named: NamedGraph
) -> dict[str, Path]:
    """Where the model holds the tensors that no state dict holds, those that it made itself."""
    own = list(held_tensors(module))
    found = {}
    for leaf in filter(is_outside_state, named.leaves):
        places = (path for path, tensor in own if same_memory(tensor, values[leaf.name]))
        place = next(places, None)
        if place is not None:
            found[leaf.name] = place
    return found


def _constants(
    deferred: Deferred, held: Mapping[str, torch.Tensor], named: NamedGraph
) -> dict[str, torch.Tensor]:
    """The values of the leaves that no state dict holds. Raises SH0358 for one without a value."""
    found = {}
    for leaf in filter(is_outside_state, named.leaves):
        try:
            found[leaf.name] = deferred.value(held[leaf.name])
        except CannotReplayError:
            raise _untraced(leaf, named.graph) from None
    return found


def _untraced(leaf: Leaf, graph: fx.Graph) -> CaptureError:
    """The error for a tensor that the forward made where tracing did not look."""
    (node,) = (n for n in graph.find_nodes(op="placeholder") if n.name == leaf.node)
    source = next((info(user).source for user in node.users), "")
    return CaptureError(
        "SH0358",
        "the model uses a tensor here that it computed where tracing does not see it",
        help="compute it in `forward` itself, in the same thread and with torch's operators",
        source=source,
    )
