"""Rules of convolutions: the batch and the output channels are outer, the input channels inner.

With groups the channels are `(g c)` and `(g o)`, and whole groups may be split too. A spatial dim
may be split where patches lie side by side, and else with a halo.
"""

from __future__ import annotations

import torch
from torch import fx

from shardlang.ir.arguments import Args
from shardlang.ir.device_values import PartNumber, size_at
from shardlang.ir.rule import Sharding
from shardlang.ir.traits import OpKind
from shardlang.rules import local_window
from shardlang.rules.call import Call, LocalCall
from shardlang.rules.op_rule import Emit
from shardlang.rules.registry import rule
from shardlang.rules.schema import Operator
from shardlang.rules.window import Sliding, emit_windows, halo, per_dim, spans
from shardlang.rules.writing import group, tensor

aten = torch.ops.aten


def _transposed(call: Call) -> bool:
    return call.flag("transposed", "transpose" in str(call.target))


def _channels(call: Call, channel: str) -> str:
    groups = call.integer("groups")
    return group([*([f"g={groups}"] if groups != 1 else []), channel])


def _pads(call: Call, extents: list[int]) -> list[int]:
    """Padding before each spatial dim."""
    padding = call["padding"]
    if isinstance(padding, str):
        return [(e - 1) // 2 if padding == "same" else 0 for e in extents]
    return per_dim(padding, len(extents))


def sliding(call: Call) -> list[Sliding]:
    """How a convolution reads its spatial dims."""
    shape, kernel = call.shape("input"), call.shape("weight")[2:]
    count, first = len(kernel), len(shape) - len(kernel)
    strides, dilations = per_dim(call["stride"], count), per_dim(call["dilation"], count)
    pads = _pads(call, [d * (k - 1) + 1 for d, k in zip(dilations, kernel, strict=True)])
    return [
        Sliding(first + i, i, shape[first + i], kernel[i], strides[i], pads[i], dilations[i])
        for i in range(count)
    ]


def _write(call: Call, factors: list[tuple[str, str, str]]) -> str:
    """The rule, given the factors of the spatial dims of operand, kernel and result."""
    before, kernel, after = ([f[i] for f in factors] for i in range(3))
    batch = ["n"] if len(call.shapes[0]) == len(factors) + 2 else []
    inner, outer = _channels(call, "c"), _channels(call, "o")
    weight = [inner, "o", *kernel] if _transposed(call) else [outer, "c", *kernel]
    operands = [tensor([*batch, inner, *before]), tensor(weight)]
    if len(call.slots) > 2:
        operands.append(f"+{outer}")
    return f"{', '.join(operands)} -> {tensor([*batch, outer, *after])}"


def _conv(call: Call) -> str:
    if _transposed(call):
        return _write(call, [_spread(one) for one in sliding(call)])
    return _write(call, [one.factors for one in sliding(call)])


def _spread(one: Sliding) -> tuple[str, str, str]:
    """The factors of a spatial dim of a transposed convolution."""
    return f"x{one.number}~", f"k{one.number}!", f"y{one.number}@x{one.number}"


def _products(call: Call) -> list[str]:
    """Every result, or with `transposed` every operand, meets each weight of its channel once."""
    return ["input weight" if _transposed(call) else "result weight"]


def _local_conv(call: Call, sharding: Sharding) -> LocalCall:
    if "g" not in sharding.factors:
        return call.replace()
    return call.replace(groups=size_at(sharding.factors["g"]))


def _odd_padding(call: Call, sharding: Sharding, emit: Emit, dims: list[Sliding]) -> fx.Node:
    """The input with the odd index that `same` pads after an unsplit dim, if it does."""
    x = call.operand("input")
    if call["padding"] != "same":
        return x
    pads: list[int] = []
    for one in reversed(dims):
        pads += [0, 0 if one.split_in(sharding) else (one.extent - 1) % 2]
    return emit(aten.constant_pad_nd.default, x, pads) if any(pads) else x


def _lower_conv(call: Call, sharding: Sharding, emit: Emit) -> fx.Node:
    """Windows, and a convolution over them without padding."""
    if _transposed(call):
        return _lower_transposed(call, sharding, emit)
    dims = sliding(call)
    split = [one for one in dims if one.split_in(sharding)]
    x = halo(_odd_padding(call, sharding, emit, dims), sharding, emit, dims)
    pads = [0 if one in split else one.pad for one in dims]
    return emit(
        local_window.convolve, x, call["weight"], call["bias"], [one.stride for one in dims], pads,
        [one.dilation for one in dims], call["groups"], [one.dim for one in split],
        [call.out[one.dim] for one in split],
    )  # fmt: skip


def _lower_transposed(call: Call, sharding: Sharding, emit: Emit) -> fx.Node:
    """Windows of all that reaches a device's outputs, spread out without padding."""
    dims, x = sliding(call), call.operand("input")
    more = per_dim(call["output_padding"], len(dims))
    split = [one for one in dims if one.split_in(sharding)]
    starts = []
    for one in split:
        after = sharding.factors[f"y{one.number}"]
        windows = [_reaching(one, *span) for span in spans(after)]
        beyond = -(-more[one.number] // one.stride)
        length = max(high - low for low, high in windows) + beyond
        x = emit_windows(emit, x, one, windows, length)
        pairs = zip(spans(after), windows, strict=True)
        starts.append([first + one.pad - low * one.stride for (first, _), (low, _) in pairs])
    return emit(
        local_window.convolve_transposed, x, call["weight"], call["bias"],
        [one.stride for one in dims],
        [0 if one in split else one.pad for one in dims],
        [0 if one in split else n for one, n in zip(dims, more, strict=True)],
        call["groups"], [one.dilation for one in dims], [one.dim for one in split],
        [call.out[one.dim] for one in split], starts,
    )  # fmt: skip


def _reaching(one: Sliding, first: int, count: int) -> tuple[int, int]:
    """The inputs, some perhaps outside the dim, that reach `count` outputs from the first on."""
    low = -((one.extent - 1 - first - one.pad) // one.stride)
    return low, (first + count - 1 + one.pad) // one.stride + 1 if count else low


rule(
    aten.conv1d.default, aten.conv1d.padding, aten.conv2d.default, aten.conv2d.padding,
    aten.conv3d.default, aten.conv3d.padding, aten.convolution.default,
    aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input,
    spec=_conv, linear=["input bias", "weight bias"], localize=_local_conv, lower=_lower_conv,
    passes=False, kind=OpKind.CONVOLUTION, keeps="input weight", flops=_products,
)  # fmt: skip


def _over_windows(call: Call) -> str:
    """Rows of windows are split as the outputs are; the other spatial dims stay whole."""
    count, shape = call.rank("weight") - 2, call.shapes[0]
    first = len(shape) - count
    windows = {dim - first for dim in call.integers("dims")}
    factors = [
        (f"x{i}", f"k{i}!", f"y{i}@x{i}") if i in windows else spatial
        for i, spatial in enumerate(_unsplit(call, count))
    ]
    return _write(call, factors)


def _unsplit(call: Call, count: int) -> list[tuple[str, str, str]]:
    shape, kernel = call.shapes[0], call.shapes[1][2:]
    first = len(shape) - count
    numbers = [per_dim(call[name], count) for name in ("stride", "padding", "dilation")]
    found = []
    for i in range(count):
        stride, pad, dilation = (each[i] for each in numbers)
        one = Sliding(first + i, i, shape[first + i], kernel[i], stride, pad, dilation)
        x, k, y = one.factors
        found.append((x, k, y) if "~" not in x else (f"x{i}!", k, f"y{i}!"))
    return found


def _local_windows(call: Call, sharding: Sharding) -> LocalCall:
    result = sharding.result().dims
    groups = size_at(sharding.factors["g"]) if "g" in sharding.factors else call["groups"]
    return call.replace(
        groups=groups, sizes=[size_at(result[dim]) for dim in call.integers("dims")]
    )


rule(
    local_window.convolve,
    spec=_over_windows, linear=["x bias", "weight bias"], localize=_local_windows, passes=False,
    kind=OpKind.CONVOLUTION, keeps="x weight", flops=["result weight"],
)  # fmt: skip


def _over_transposed(call: Call) -> str:
    count = call.rank("weight") - 2
    first = len(call.shapes[0]) - count
    windows = {dim - first for dim in call.integers("dims")}
    return _write(call, [
        (f"x{i}", f"k{i}!", f"y{i}@x{i}") if i in windows else (f"x{i}!", f"k{i}!", f"y{i}!")
        for i in range(count)
    ])  # fmt: skip


def _local_transposed(call: Call, sharding: Sharding) -> LocalCall:
    """What `_local_windows` says, and which part is the device's own."""
    target, args, kwargs = _local_windows(call, sharding)
    parts = [PartNumber(sharding.result().dims[dim].axes) for dim in call.integers("dims")]
    return target, (*args, parts), kwargs


rule(
    local_window.convolve_transposed,
    spec=_over_transposed, linear=["x bias", "weight bias"], localize=_local_transposed,
    passes=False, kind=OpKind.CONVOLUTION, keeps="x weight", flops=["x weight"],
)  # fmt: skip
rule(
    aten.conv_tbc.default,
    spec="t! n c, k! c o, +o -> s! n o", linear=["self bias", "weight bias"], passes=False,
    kind=OpKind.CONVOLUTION, flops=["result weight"],
)  # fmt: skip


def products_again(target: object, args: Args) -> tuple[Operator, Args, int] | None:
    """The convolution whose products the backward of one makes, and how often.

    Each of the gradients of input and weight takes as many operations as the forward.

    Args:
        args: those of the backward, in the order of its schema.

    Returns:
        None for any other op.
    """
    if target is not aten.convolution_backward.default:
        return None
    x, weight, options, wanted = args[1], args[2], args[4:10], args[10]
    assert isinstance(wanted, (list, tuple)), "the wanted gradients are flags"
    return aten.convolution.default, (x, weight, None, *options), sum(map(bool, wanted[:2]))
