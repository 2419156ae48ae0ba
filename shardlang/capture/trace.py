"""Tracing a model: `torch.export` on fake tensors, then normalization."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import fx, nn

from shardlang.capture.deferred import Deferred
from shardlang.capture.errors import CaptureError, model_line
from shardlang.capture.failures import explain_failure
from shardlang.capture.hf_patches import export_patches
from shardlang.capture.mark import marking
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
from shardlang.capture.silence import quiet
from shardlang.capture.source import InputSpec, ModelSource
from shardlang.capture.stacks import full_stacks
from shardlang.capture.state import Remark, Snapshot
from shardlang.capture.tape import CannotReplayError
from shardlang.capture.types import Captured, Leaf
from shardlang.capture.unseen import (
    assigned_buffers_written,
    check_output,
    refuse_sparse_gradients,
    refuse_unseen,
)
from shardlang.passes.errors import PassError
from shardlang.passes.normalize import Normalize


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
        program = _export(call, source.deferred, list(specs.values()), mark)
        return _finish(source, call, program)
    except PassError as error:
        raise CaptureError(
            error.code, error.message, help=error.help, source=error.source
        ) from None


class _Seen:
    """What tracing observes; export resets the attributes of modules, so it is kept apart."""

    output: Skeleton | None = None
    remarks: tuple[Remark, ...] = ()


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
        with assigned_buffers_written(self.model_):
            result = self.source.call(self.model_, dict(zip(self.names, flat, strict=True)))
        check_output(result)
        self.seen.output = skeleton(result)
        self.seen.remarks = tuple(before.remarks(Snapshot.of(self.model_)))
        return tuple(tensor for _, tensor in tensors(result))


def _export(
    call: _Call, deferred: Deferred, specs: list[InputSpec], mark: Callable[[str], bool]
) -> torch.export.ExportedProgram:
    """Run `torch.export` and turn its failures into one clear error."""
    with deferred.fake_mode:
        fakes = tuple(torch.empty(spec.shape, dtype=spec.dtype) for spec in specs)
    train = call.source.mode == "train"
    try:
        with (
            quiet(), refuse_unseen(train) as used, export_patches(specs),
            marking(call.model_, mark), full_stacks(),
        ):  # fmt: skip
            program = torch.export.export(call, fakes, strict=False)
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
    output, first = call.seen.output, call.seen.remarks
    try:
        with quiet(), export_patches(specs), call.source.deferred.fake_mode:
            call(*fakes)
            call(*fakes)
    except Exception:
        return first
    finally:
        call.seen.output = output
    return call.seen.remarks


def _finish(source: ModelSource, call: _Call, program: torch.export.ExportedProgram) -> Captured:
    """Name everything in an exported program and normalize it."""
    output = call.seen.output
    assert output is not None
    traced = program.graph_module
    for part in traced.modules():
        if isinstance(part, fx.GraphModule):
            annotate(part.graph)
    leaves = bind_leaves(program, source.deferred.module, call.names)
    graph, final = Normalize().run(traced)
    named = name_graph(graph, leaves, final, output.names)
    if source.mode == "train":
        refuse_sparse_gradients(named.graph, named.leaves)
    return Captured(
        graph=named.graph,
        leaves=named.leaves,
        results=named.results,
        values=named.values,
        repeats=named.repeats,
        modules=tuple(name for name, _ in source.deferred.module.named_modules() if name),
        constants=_constants(source.deferred, program, named),
        output=output,
        forward_names=source.forward_names,
        remarks=call.seen.remarks,
    )


def _constants(
    deferred: Deferred, program: torch.export.ExportedProgram, named: NamedGraph
) -> dict[str, torch.Tensor]:
    """The values of the leaves that no state dict holds. Raises SH0358 for one without a value."""
    buffers = dict(deferred.module.named_buffers(remove_duplicate=False))
    held = {strip_prefix(name): value for name, value in program.constants.items()}
    held |= buffers
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
    source = next((user.meta["source"] for user in node.users), "")
    return CaptureError(
        "SH0358",
        "the model uses a tensor here that it computed where tracing does not see it",
        help="compute it in `forward` itself, in the same thread and with torch's operators",
        source=source,
    )
