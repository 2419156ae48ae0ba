"""What a failing trace says to the person: the cause in the model, its line, and what to do."""

from __future__ import annotations

import linecache
import re
import traceback
from typing import NamedTuple

from shardlang.capture.errors import CaptureError, ModelLine, first_line, model_line


class _Cause(NamedTuple):
    """A kind of failure: words of the exceptions that mean it, and what to say.

    `{op}` in the message stands for the operator that the exception's text names.
    """

    words: tuple[str, ...]
    code: str
    message: str
    help: str


_TENSOR_HELP = (
    "keep the value a tensor, and choose with `torch.where(condition, a, b)`; "
    "or decide by a shape or an argument of the model"
)
_VALIDATION_HELP = "build the distribution with `validate_args=False`: it looks at its arguments"
_AVERAGE_HELP = (
    "give the batch norm a momentum, such as `momentum=0.1`: without one it divides by the number"
    " of its batches, which is a tensor"
)
_BRANCH = "the model decides by the value of a tensor, which is not known while it is traced"
_NUMBER = "the model needs the value of a tensor as a number, which is not known while it is traced"

_DATA = ("DataDependent", "data-dependent", "Data dependent")
_CAUSES: tuple[_Cause, ...] = (
    _Cause(
        (".numpy() is not supported", "Cannot convert a tensor to a NumPy"),
        "SH0354",
        "the model hands a tensor to NumPy, which is not traced",
        "compute it with torch; what depends on no input can be computed in the constructor",
    ),
    _Cause(
        ("DynamicOutputShapeException",),
        "SH0354",
        "the result of the op {op} has a shape that depends on values, which are not known while it"
        " is traced",
        "use an op whose result has a fixed shape: a mask, `torch.where` or weights of zero",
    ),
    _Cause(
        ("FakeTensor.__format__",),
        "SH0354",
        "the model writes the value of a tensor into a text, which is not known while it is traced",
        "take the text out of `forward`, or put it behind `if not torch.compiler.is_exporting():`",
    ),
    _Cause(
        ("no fake impl registered", "has no fake impl"),
        "SH0355",
        "the op {op} does not say what its result looks like",
        "register a function that makes an empty result: `@NAME.register_fake`",
    ),
    _Cause(
        ("functorch",),
        "SH0358",
        "the model uses a transform of `torch.func` that cannot be traced",
        "write the computation out with ordinary operators",
    ),
    _Cause(
        ("UnsupportedOperatorException", "nested_tensor"),
        "SH0358",
        "the op {op} cannot be traced",
        "compute it from dense tensors: padding and a mask instead of nested tensors",
    ),
    _Cause(
        ("support for cuda", "NVIDIA driver", "FakeTensor Device Propagation", "CUDA GPU"),
        "SH0355",
        "the model moves a tensor to a device of its own choice",
        "leave devices to the caller: create tensors with `device=x.device` of a tensor at hand",
    ),
    _Cause(
        ("assigned during export",),
        "SH0358",
        "the model keeps a tensor in an attribute that is not a buffer",
        "register it with `register_buffer`, or return it",
    ),
)
_OP = re.compile(r"(?:CustomOpDef\(|\b)((?:aten|[A-Za-z_]\w*)(?:::|\.)\w+)")


def explain_failure(error: Exception, advice: str = "") -> CaptureError:
    """The error for the person from whatever tracing raised.

    Args:
        advice: what helps against code that depends on tensor data in this kind of model.
    """
    text = f"{type(error).__name__}: {error}"
    source = model_line(error)
    if any(word in text for word in _DATA):
        message = _BRANCH if _decides(source) else _NUMBER
        help = next((help for part, help in _OF_TORCH.items() if _goes_through(error, part)), "")
        return CaptureError("SH0354", message, help=help or advice or _TENSOR_HELP, source=source)
    for cause in _CAUSES:
        if any(word in text for word in cause.words):
            message = cause.message.format(op=_op_in(error))
            return CaptureError(cause.code, message, help=cause.help, source=source)
    return CaptureError(
        "SH0355",
        f"the model fails on the declared inputs: {type(error).__name__}: {first_line(error)}",
        help="it was called with the shapes and types of the `input` statements: change those, or"
        " the model",
        source=source,
    )


_OF_TORCH = {
    "/torch/distributions/": _VALIDATION_HELP,
    "/torch/nn/modules/batchnorm.py": _AVERAGE_HELP,
}
"""What helps where code of torch, by its place, looks at the values of tensors."""


def _goes_through(error: Exception, part: str) -> bool:
    """Whether an exception comes out of a file whose path has this part."""
    frames = traceback.extract_tb(error.__traceback__)
    return any(part in frame.filename for frame in frames)


def _op_in(error: Exception) -> str:
    """The operator that an exception's text names, without its overload."""
    found = _OP.search(str(error))
    return f"`{found[1].removeprefix('aten.')}`" if found else "that it calls"


def _decides(source: str) -> bool:
    """Whether a line of the model's code chooses what to do."""
    if not isinstance(source, ModelLine):
        return False
    code = linecache.getline(source.path, source.number).strip()
    return re.search(r"\b(if|elif|while|for|assert)\b", code) is not None
