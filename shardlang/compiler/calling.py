"""What a call of the model passes, and what of it the model and the spec do not know."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from inspect import Parameter

import torch
from torch import Tensor

from shardlang.capture import CaptureError, ModelSource
from shardlang.capture.caches import check_caches
from shardlang.capture.nest import leaves, named_call
from shardlang.compiler.driver import Compiled
from shardlang.grammar.diagnostics import join_words, quote
from shardlang.ir.layout import Layout
from shardlang.ir.leaf import LeafKind
from shardlang.ir.mesh import product
from shardlang.ir.printed_type import dtype_name
from shardlang.runtime.calls import Argument, Call, Given
from shardlang.runtime.errors import RunError

_PLAIN = (bool, int, float, complex, str, torch.dtype, type(None))


@contextlib.contextmanager
def refusing() -> Iterator[None]:
    """Let what the model's source refuses of a call be SH0613."""
    try:
        yield
    except CaptureError as error:
        raise RunError("SH0613", error.message, help=error.help) from None


def bound(
    source: ModelSource,
    defaults: Mapping[str, str],
    args: Sequence[object],
    kwargs: Mapping[str, object],
) -> tuple[dict[str, Tensor], tuple[Argument, ...]]:
    """Tensors and all other arguments of a call, by dotted name.

    Args:
        defaults: the texts of their default values; an argument that says the same is left out.

    Raises:
        RunError: SH0613, an argument is neither a tensor nor a plain value, given twice, or one
            that the source refuses.
    """
    with refusing():
        check_caches((args, kwargs))
        named = named_call(source.forward_names, args, kwargs)
        flat = dict(leaves(source.taken(named)))
    found = {name: value for name, value in flat.items() if isinstance(value, Tensor)}
    others = [_argument(name, flat[name]) for name in sorted(flat) if name not in found]
    return found, tuple(one for one in others if defaults.get(one.name) != one.text)


def _argument(name: str, value: object) -> Argument:
    if not isinstance(value, _PLAIN) and value not in ((), [], {}):
        raise RunError(
            "SH0613",
            f"the argument `{name}` is a `{type(value).__name__}`",
            help="pass tensors, numbers, strings, None, or tuples, lists and dicts of them",
        )
    return Argument(name, repr(value), value)


def defaults_of(source: ModelSource) -> dict[str, str]:
    """The texts of the default values of the model's forward."""
    parameters = source.signature.parameters.values()
    return {p.name: repr(p.default) for p in parameters if p.default is not Parameter.empty}


def check_names(source: ModelSource, call: Call) -> None:
    """Raise SH0613 for an argument, tensor or not, that the forward does not take."""
    names = [one.name for one in call.inputs] + [one.name for one in call.arguments]
    with refusing():
        source.check_names(name.split(".")[0] for name in names)


def check_lists(compiled: Compiled, call: Call) -> None:
    """Raise SH0605 for a list of numbers where the spec declares a tensor."""
    names = [one.name for one in call.arguments]
    for spec in compiled.inputs:
        if any(name.startswith(f"{spec.name}.") for name in names):
            raise RunError(
                "SH0605",
                f"input `{spec.name}` is a list or dict of plain values, and the spec declares a"
                " tensor",
                help=f"pass a tensor: `torch.tensor({spec.name})`",
            )


def check_inputs(compiled: Compiled, call: Call, strict: bool) -> None:
    """Raise SH0605 for an input that the spec does not declare, or that the call lacks.

    An input that the forward can do without need not be passed, unless `strict` asks for all.
    """
    declared = [spec.name for spec in compiled.inputs]
    given = {one.name: one for one in call.inputs}
    extra = [name for name in given if name not in declared]
    if extra:
        lines = join_words(quote(_line(compiled, given[name]) for name in extra), "and")
        raise RunError(
            "SH0605",
            f"the spec does not declare the input {join_words(quote(extra), 'and')}",
            help=f"add {lines} to it",
        )
    _check_dtypes(compiled, given)
    lacking = [name for name in declared if name not in given]
    passed = [*given, *(argument.name for argument in call.arguments)]
    needed = [n for n in lacking if strict or not given or _is_needed(compiled.source, n, passed)]
    if needed:
        what = "batch" if strict else "call"
        raise RunError(
            "SH0605",
            f"the {what} lacks the input {join_words(quote(needed), 'and')}",
            help="pass it, or drop its `input` statement and compile again",
        )


def _check_dtypes(compiled: Compiled, given: Mapping[str, Given]) -> None:
    """Raise SH0605 for an input of another dtype than declared."""
    for spec in compiled.inputs:
        one = given.get(spec.name)
        if one is not None and one.dtype != spec.dtype:
            found, wanted = dtype_name(one.dtype), dtype_name(spec.dtype)
            raise RunError(
                "SH0605",
                f"input `{spec.name}` is {found}, and the spec declares {wanted}",
                help=f"convert it (`.to({spec.dtype})`), or declare it as `{found}`",
            )


def _is_needed(source: ModelSource, name: str, passed: Sequence[str]) -> bool:
    """Whether the forward has no default for an input, or got other parts of it."""
    top = name.split(".")[0]
    parameter = source.signature.parameters.get(top)
    if "." in name and any(other.startswith(f"{top}.") for other in passed):
        return True
    return parameter is not None and parameter.default is Parameter.empty and top not in passed


def _line(compiled: Compiled, given: Given) -> str:
    """A statement that declares an input, its first dim laid out as those of other inputs are."""
    leaves = [leaf.layout for leaf in compiled.program.leaves if leaf.kind is LeafKind.INPUT]
    first = next((_axes(layout) for layout in leaves if layout.dims), "_")
    dims = [first, *["_"] * (len(given.shape) - 1)] if given.shape else []
    kind = f"{dtype_name(given.dtype)}{list(given.shape)}"
    return f"input {given.name} : {kind} [{', '.join(dims)}]"


def _axes(layout: Layout) -> str:
    return product(layout.dims[0].axes) or "_"
