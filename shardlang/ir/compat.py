"""The one place that names what PyTorch does not document.

Each name here may move between torch releases; a release that moves one is met here alone.
Checked with torch 2.11, 2.13 and 2.15.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Protocol, TypeAlias, TypeVar

import torch
from torch import fx
from torch._C import _fx_map_aggregate
from torch._C._distributed_c10d import (
    AllgatherOptions,
    AllreduceOptions,
    AllToAllOptions,
    ReduceScatterOptions,
    Store,
    TCPStore,
)
from torch._C._dynamo import eval_frame
from torch._C._dynamo.eval_frame import get_eval_frame_callback
from torch._guards import active_fake_mode, detect_fake_mode
from torch._library.custom_ops import CustomOpDef
from torch._ops import HigherOrderOperator, OpOverload, OpOverloadPacket
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
    UnsupportedOperatorException,
    unset_fake_temporarily,
)
from torch.autograd import forward_ad
from torch.distributed.distributed_c10d import _get_default_store
from torch.fx import proxy
from torch.fx._lazy_graph_module import _use_lazy_graph_module
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.fx.proxy import TracerBase
from torch.nn import init
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map_only

__all__ = [
    "BACKWARD_ENGINE",
    "CHATTY_LOGGERS",
    "LIBRARY_FUNCTIONS",
    "NO_FAKE_RESULT",
    "STACK_FILTER",
    "STACK_SOURCE",
    "TRUNC_NORMAL",
    "AllToAllOptions",
    "AllgatherOptions",
    "AllreduceOptions",
    "AttentionKernels",
    "Backend",
    "CustomOpDef",
    "DTensorSpec",
    "DataDependentOutputException",
    "DynamicOutputShapeException",
    "FakeTensor",
    "FakeTensorMode",
    "HigherOrderOperator",
    "OpOverload",
    "OpOverloadPacket",
    "ReduceScatterOptions",
    "ShapeEnv",
    "Store",
    "TCPStore",
    "TorchDispatchMode",
    "active_compiler",
    "active_fake_mode",
    "allowing",
    "asks_for_one_graph",
    "attention_kernels",
    "backend_named",
    "backend_of",
    "backward_number",
    "clear_saved",
    "code_on_demand",
    "compile_graph",
    "default_generator",
    "default_store",
    "detect_fake_mode",
    "dtensor_overloads",
    "dtensor_spec",
    "export_fake_mode",
    "forget_constant",
    "forget_fakes",
    "forget_process_groups",
    "inside_dual_level",
    "is_composite",
    "keeps_graph",
    "map_leaves",
    "no_dispatch",
    "overload_names",
    "route_operations",
    "storage_key",
    "timeout_of",
    "tree_flatten",
    "tree_leaves",
    "tree_map_only",
    "under_transforms",
    "unset_fake_temporarily",
]

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import Placement
    from torch.distributed.tensor._dtensor_spec import DTensorSpec

Handler: TypeAlias = "Callable[[OpOverload, tuple[object, ...], dict[str, object]], object]"
"""What computes an op with its arguments."""


_Layer: TypeAlias = "tuple[torch.Tensor, tuple[torch.Tensor, ...]]"
"""What one layer of an LSTM gives: its outputs, and its last states."""


class _DTensorHandler(Protocol):
    """The same, as DTensor calls it."""

    def __call__(
        self, op_call: OpOverload, args: tuple[object, ...], kwargs: dict[str, object]
    ) -> object: ...


Results: TypeAlias = "Callable[..., Sequence[torch.Tensor]]"
"""A compiled graph."""

Backend: TypeAlias = "Callable[[fx.GraphModule, list[object]], Results]"
"""What compiles a graph for its inputs, as `torch.compile` calls it."""

AttentionKernels: TypeAlias = "tuple[int, ...]"
"""Which kernels of attention are allowed, and their order."""

STACK_FILTER = (TracerBase, "_filter_traceback_frames")
"""The method by which tracing chooses the stack frames that a node records."""

STACK_SOURCE = (proxy, "CapturedTraceback")
"""The class whose `extract().summary()` gives tracing all frames of which it chooses."""

TRUNC_NORMAL = (init, "_no_grad_trunc_normal_")
"""The function behind `torch.nn.init.trunc_normal_`, looked up at each call."""

BACKWARD_ENGINE = (torch.autograd, "_engine_run_backward")
"""The function behind every backward, looked up at each call."""

LIBRARY_FUNCTIONS = ("torch._library", "torch._functorch", "torch._higher_order_ops")
"""Where torch makes autograd functions of its own: of custom ops, transforms and control flow."""

CHATTY_LOGGERS = (
    "torch.fx.experimental.symbolic_shapes",
    "torch._subclasses.fake_tensor",
    "torch.export",
    "torch._export",
)
"""Loggers that comment on a failing trace before its exception arrives."""


_TreeT = TypeVar("_TreeT")


def map_leaves(tree: _TreeT, change: Callable[[object], object]) -> _TreeT:
    """Change all that is in the tuples, lists, dicts and slices of a call's arguments.

    Several times faster than `tree_map`, which looks up how to open every type that it meets.
    """
    made: _TreeT = _fx_map_aggregate(tree, change)
    return made


def code_on_demand() -> AbstractContextManager[None]:
    """Trace graphs whose Python code is written when it is asked for, not after every change."""
    lazily: AbstractContextManager[None] = _use_lazy_graph_module(True)
    return lazily


def export_fake_mode() -> FakeTensorMode:
    """A fake mode as `torch.export` wants it, for static shapes."""
    return FakeTensorMode(
        shape_env=ShapeEnv(tracked_fakes=[]), allow_non_fake_inputs=True, export=True
    )


def is_composite(op: OpOverload) -> bool:
    """Whether an op is made of others; it may give back an operand, unsaid by its schema."""
    found: bool = op.has_kernel_for_dispatch_key(torch._C.DispatchKey.CompositeImplicitAutograd)
    return found


def backward_number() -> int:
    """The number of the backward that runs now, which no other one of the process has."""
    number: int = torch._C._current_graph_task_id()
    return number


def forget_fakes(mode: FakeTensorMode) -> None:
    """Drop the weak references to the fake tensors that a mode has made.

    It keeps one to each that it makes anew, and none to those that it takes from its cache, while
    `nn.Module.to` exchanges the parts of two tensors only where neither has any.
    """
    mode.fake_tensor_converter.meta_converter.tensor_memo.clear()


def under_transforms() -> bool:
    """Whether the code runs inside `grad`, `vmap` or another transform of `torch.func`."""
    return bool(torch._C._are_functorch_transforms_active())


def inside_dual_level() -> bool:
    """Whether the code runs inside `torch.autograd.forward_ad.dual_level`."""
    return forward_ad._current_level >= 0


def default_store() -> Store:
    """The store at which the processes of the default group met."""
    found: Store = _get_default_store()
    return found


def timeout_of(group: ProcessGroup) -> timedelta:
    """How long calls of a process group wait."""
    found: timedelta = group._get_backend(group._device_types[0]).options._timeout
    return found


def forget_process_groups(mesh: DeviceMesh) -> None:
    """Have a device mesh let go of its process groups, which torch 2.13 holds there too."""
    getattr(mesh, "_pg_registry", {}).clear()


def keeps_graph() -> bool:
    """Whether the backward that runs retains its graph."""
    return bool(torch._C._autograd._get_current_graph_task_keep_graph())


def clear_saved(context: object) -> None:
    """Let go of the tensors that the forward of an autograd function saved in its context."""
    context.maybe_clear_saved_tensors()  # type: ignore[attr-defined]


def storage_key(tensor: torch.Tensor) -> int:
    """The identity of a tensor's storage, shared by its views, as long as one of them lives."""
    return int(tensor.untyped_storage()._cdata)


def default_generator(device: torch.device) -> torch.Generator:
    """The generator that random ops on a device draw from."""
    if device.type == "cpu":
        return torch.default_generator
    backend = torch.get_device_module(device)
    index = backend.current_device() if device.index is None else device.index
    found: torch.Generator = backend.default_generators[index]
    return found


def dtensor_spec(
    mesh: DeviceMesh, placements: tuple[Placement, ...], shape: tuple[int, ...], dtype: torch.dtype
) -> DTensorSpec:
    """What a contiguous DTensor carries beside its shard."""
    from torch.distributed.tensor._dtensor_spec import DTensorSpec, TensorMeta

    like = torch.empty(shape, device="meta")
    return DTensorSpec(mesh, placements, tensor_meta=TensorMeta(like.shape, like.stride(), dtype))


def route_operations(is_ours: Callable[[object], bool], ours: Handler) -> None:
    """Send operations on a subclass of DTensor to the subclass, as torch does since 2.13 by itself.

    Earlier ones take every subclass for a DTensor of their own, but ask a table of handlers first.
    """
    from torch.distributed.tensor import DTensor

    handlers = DTensor._op_dispatcher._custom_op_handlers

    def unhandled(op: OpOverload, args: tuple[object, ...], kwargs: dict[str, object]) -> object:
        handler = handlers.pop(op)
        try:
            made: object = op(*args, **kwargs)
        finally:
            handlers[op] = handler
        return made

    for op in _aten_overloads():
        handlers[op] = _routed(handlers.get(op, unhandled), is_ours, ours)


def _routed(before: Handler, is_ours: Callable[[object], bool], ours: Handler) -> _DTensorHandler:
    def handler(op_call: OpOverload, args: tuple[object, ...], kwargs: dict[str, object]) -> object:
        if any(is_ours(x) for x in tree_leaves((args, kwargs))):
            return ours(op_call, tuple(args), kwargs or {})
        return before(op_call, args, kwargs or {})

    return handler


def _aten_overloads() -> Iterator[OpOverload]:
    for full in torch._C._dispatch_get_all_op_names():
        name, _, overload = full.removeprefix("aten::").partition(".")
        if full.startswith("aten::"):
            packet = getattr(torch.ops.aten, name, None)
            found = getattr(packet, overload or "default", None)
            if isinstance(found, OpOverload):
                yield found


def dtensor_overloads() -> list[OpOverload]:
    """The forward overloads without side effects that DTensor can propagate a sharding through.

    Those of lists of tensors and the fused updates of optimizers are left out.
    """
    from torch.distributed.tensor import DTensor

    propagator = DTensor._op_dispatcher.sharding_propagator
    tables = ("op_strategy_funcs", "op_to_rules", "op_single_dim_strategy_funcs")
    found = {op for name in tables for op in getattr(propagator, name, ())}
    kept = [op for op in found if isinstance(op, OpOverload) and _is_forward(op)]
    return sorted(kept, key=str)


def overload_names(packet: OpOverloadPacket) -> list[str]:
    """The names of an op's overloads."""
    names: list[str] = packet.overloads()  # type: ignore[no-untyped-call]
    return names


def _is_forward(op: OpOverload) -> bool:
    writes = any(a.alias_info is not None and a.alias_info.is_write for a in op._schema.arguments)
    apart = ("backward", "_foreach_", "_fused_")
    return not writes and not any(word in str(op) for word in apart)


NO_FAKE_RESULT = (
    DataDependentOutputException,
    DynamicOutputShapeException,
    UnsupportedOperatorException,
)
"""Raised for calls that are right, and whose results no fake tensors can tell."""


def forget_constant(fake: object) -> None:
    """Forget what a fake tensor's value is, where that is a fake tensor itself.

    Ops on known values are computed; on such a one they would read memory that is not there.
    """
    if isinstance(fake, FakeTensor) and isinstance(fake.constant, FakeTensor):
        fake.constant = None


def _mend_lstm() -> None:
    """Let traces give the states of an LSTM the shape that it gives them.

    The decomposition of torch 2.11 squeezes the wrong dim of them, and leaves one dim too many.
    """
    from torch._decomp import decompositions

    layer: Callable[..., _Layer] = decompositions.one_layer_lstm

    def mended(*args: object, **kwargs: object) -> _Layer:
        out, states = layer(*args, **kwargs)
        return out, tuple(x.reshape(x.shape[-2:]) for x in states)

    decompositions.one_layer_lstm = mended


if torch.__version__ < "2.13":
    _mend_lstm()


def unsupported(message: str) -> Exception:
    """The error that makes `torch.compile` run a frame as it is, and refuse a `fullgraph`."""
    from torch._dynamo.exc import Unsupported

    error = Unsupported(message)
    error.skip_frame = True
    return error


def active_compiler() -> object | None:
    """What `torch.compile` has put around the code that runs; None outside of it."""
    callback = get_eval_frame_callback()
    return callback if callable(callback) else None


def backend_of(compiler: object) -> Backend:
    """The backend of an `active_compiler`."""
    from torch._dynamo.eval_frame import innermost_backend

    assert callable(compiler)
    found: Backend = innermost_backend(compiler)
    return found


def asks_for_one_graph() -> bool:
    """Whether the code runs under a `torch.compile(fullgraph=True)`, as torch 2.13 tells.

    It counts frames then, from 0; the count is below that where nobody asks.
    """
    count = getattr(eval_frame, "set_fullgraph_compiled_frame_count", None)
    if count is None:
        return False
    before: int = count(0)
    if before < 0:
        count(before)
    return before >= 0


def attention_kernels() -> AttentionKernels:
    """Which kernels of attention are allowed now, and in which order they are tried."""
    allowed = (
        torch._C._get_flash_sdp_enabled(), torch._C._get_mem_efficient_sdp_enabled(),
        torch._C._get_math_sdp_enabled(), torch._C._get_cudnn_sdp_enabled(),
    )  # fmt: skip
    return *allowed, *torch._C._get_sdp_priority_order()


@contextmanager
def allowing(kernels: AttentionKernels) -> Iterator[None]:
    """Allow other kernels of attention for a while, as `attention_kernels` has given them."""
    before = attention_kernels()
    if kernels != before:
        _allow(kernels)
    try:
        yield
    finally:
        if kernels != before:
            _allow(before)


def _allow(kernels: AttentionKernels) -> None:
    flash, efficient, math, cudnn, *order = kernels
    torch._C._set_sdp_use_flash(bool(flash))
    torch._C._set_sdp_use_mem_efficient(bool(efficient))
    torch._C._set_sdp_use_math(bool(math))
    torch._C._set_sdp_use_cudnn(bool(cudnn))
    torch._C._set_sdp_priority_order(order)


def backend_named(name: str) -> Backend:
    """A backend of `torch.compile`, such as `inductor`."""
    return _backend(name)


def _backend(name: str) -> Backend:
    from torch._dynamo import lookup_backend
    from torch._dynamo.eval_frame import innermost_backend

    found: Backend = innermost_backend(lookup_backend(name))
    return found


def compile_graph(backend: Backend, module: fx.GraphModule, values: list[torch.Tensor]) -> Results:
    """A graph that takes one list, compiled for a list like this one, which the result empties.

    Backends take such a graph, and flatten the list at every call by a general function; inductor
    also takes one that is called with the list as it is.
    """
    from torch._dynamo.utils import GmWrapper

    module.graph.find_nodes(op="placeholder")[0].meta["steal_arg"] = True
    if not _is_inductor(backend):
        return backend(module, [values])
    inductor: Callable[..., Results] = backend
    return inductor(GmWrapper(module, lambda flat: (flat,)), values)


def gives_new_memory(backend: Backend) -> bool:
    """Whether a call of what a backend has compiled leaves alone what earlier calls gave.

    Graphs of CUDA are replayed into the memory of the call before. Of backends that PyTorch does
    not bring nothing is known.
    """
    from torch._inductor import config

    if _is_inductor(backend):
        chosen = getattr(backend, "config", {})
        return not chosen.get("triton.cudagraphs", config.triton.cudagraphs)
    return backend in map(_backend, ("eager", "aot_eager"))


def _is_inductor(backend: object) -> bool:
    return isinstance(backend, torch._TorchCompileInductorWrapper) or backend == _backend(
        "inductor"
    )
