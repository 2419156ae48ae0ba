"""Tracing a model: `torch.export` on fake tensors, then normalization."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import fx, nn

from shardlang.capture.deferred import Deferred
from shardlang.capture.errors import CaptureError, first_line, model_line
from shardlang.capture.hf_patches import export_patches
from shardlang.capture.mark import marking
from shardlang.capture.naming import (
    annotate,
    bind_leaves,
    is_outside_state,
    name_graph,
    strip_prefix,
)
from shardlang.capture.nest import Skeleton, skeleton, tensors
from shardlang.capture.source import InputSpec, ModelSource
from shardlang.capture.stacks import full_stacks
from shardlang.capture.types import Captured, Leaf
from shardlang.ir.compat import CHATTY_LOGGERS
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


class _Call(nn.Module):
    """The model behind a flat signature: tensors in declared order, tensors out."""

    def __init__(self, source: ModelSource, names: tuple[str, ...]) -> None:
        super().__init__()
        self.model_ = source.deferred.module
        self._source = source
        self.names = names
        self.seen = _Seen()

    def forward(self, *flat: torch.Tensor) -> tuple[torch.Tensor, ...]:
        with _assigned_buffers_written(self.model_):
            result = self._source.call(self.model_, dict(zip(self.names, flat, strict=True)))
        self.seen.output = skeleton(result)
        return tuple(tensor for _, tensor in tensors(result))


@contextlib.contextmanager
def _assigned_buffers_written(model: nn.Module) -> Iterator[None]:
    """Turn `self.buffer = value` into a write to the buffer, which export keeps track of."""
    owned = [(m, name, b) for m in model.modules() for name, b in m._buffers.items()]
    yield
    for module, name, old in owned:
        new = module._buffers.get(name)
        if old is None or new is None or new is old:
            continue
        old.copy_(new.detach())
        module._buffers[name] = old


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep torch's own remarks about tracing from the person; errors are raised all the same."""
    loggers = [logging.getLogger(name) for name in CHATTY_LOGGERS]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def _export(
    call: _Call, deferred: Deferred, specs: list[InputSpec], mark: Callable[[str], bool]
) -> torch.export.ExportedProgram:
    """Run `torch.export` and turn its failures into one clear error."""
    with deferred.fake_mode:
        fakes = tuple(torch.empty(spec.shape, dtype=spec.dtype) for spec in specs)
    try:
        with _quiet(), marking(call.model_, mark), export_patches(specs), full_stacks():
            return torch.export.export(call, fakes, strict=False)
    except CaptureError:
        raise
    except Exception as error:
        raise _explain(error) from error


_DATA_DEPENDENT = ("DataDependent", "GuardOnDataDependent", "data-dependent", "Data dependent")


def _explain(error: Exception) -> CaptureError:
    """The error for the person from whatever tracing raised."""
    text = f"{type(error).__name__}: {error}"
    if any(word in text for word in _DATA_DEPENDENT):
        return CaptureError(
            "SH0354",
            "the model branches on tensor data, so its graph depends on the input",
            help="compute the condition with torch.where, or from shapes",
            source=model_line(error),
        )
    return CaptureError(
        "SH0355",
        f"the model fails while it is traced: {type(error).__name__}: {first_line(error)}",
        source=model_line(error),
    )


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
    return Captured(
        graph=named.graph,
        leaves=named.leaves,
        results=named.results,
        values=named.values,
        repeats=named.repeats,
        modules=tuple(name for name, _ in source.deferred.module.named_modules() if name),
        constants=_constants(source.deferred, program, named.leaves),
        output=output,
        forward_names=source.forward_names,
    )


def _constants(
    deferred: Deferred, program: torch.export.ExportedProgram, leaves: Sequence[Leaf]
) -> dict[str, torch.Tensor]:
    """The values of the leaves that no state dict holds."""
    buffers = dict(deferred.module.named_buffers(remove_duplicate=False))
    held = {strip_prefix(name): value for name, value in program.constants.items()}
    held |= buffers
    wanted = [leaf.name for leaf in leaves if is_outside_state(leaf)]
    return {name: deferred.value(held[name]) for name in wanted}
