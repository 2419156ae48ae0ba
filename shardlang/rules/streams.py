"""Independent streams of random numbers: each part of a tensor has its own.

A stream is named by the key of the run of the program, by the number of the draw in the program,
and by the part of the result that the device holds. So devices that hold the same part draw the
same numbers, all others independent ones, and nobody draws more than its own part. The key alone
comes from the global generator, one number a run; all that is drawn here leaves it as it was.

For each random op there is one under `shardlang::stream_...` that takes key, draw and part before
its own arguments; `torch.compile` takes it as it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, fx

from shardlang.ir.compat import OpOverload, default_generator
from shardlang.ir.layout import Layout
from shardlang.ir.node import NodeInfo
from shardlang.ir.own_ops import define, implement
from shardlang.ir.rewriter import Rewriter
from shardlang.rules.schema import Operator

_WORD = (1 << 64) - 1
_HALF = (1 << 32) - 1


def _mixed(x: int) -> int:
    """The finalizer of splitmix64 (Steele, Lea and Flood, 2014): a bijection of 64 bits."""
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & _WORD
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & _WORD
    return x ^ (x >> 31)


def _mixed_half(x: int) -> int:
    """The finalizer of MurmurHash3: a bijection of 32 bits."""
    x = (x ^ (x >> 16)) * 0x85EBCA6B & _HALF
    x = (x ^ (x >> 13)) * 0xC2B2AE35 & _HALF
    return x ^ (x >> 16)


def stream_seed(key: int, draw: int, part: int) -> int:
    """The seed of a stream.

    Parts of one draw differ in the lower 32 bits: generators on a CPU take no others.
    """
    base = _mixed((_mixed(key & _WORD) + draw) & _WORD)
    return (base & ~_HALF) | _mixed_half((base + part) & _HALF)


define("stream_key() -> Tensor", draws=True)
_key = implement(
    "stream_key",
    lambda: torch.randint(1 << 62, (), dtype=torch.int64, device="cpu"),
    lambda: torch.empty((), dtype=torch.int64, device="cpu"),
)


def stream_key() -> Tensor:
    """The key of one run of the program: the same on all devices, which are seeded alike.

    It is an op of its own: inductor would draw another number, and make code for the CPU to do so.
    """
    key: Tensor = _key()
    return key


def key_node(graph: fx.Graph) -> fx.Node:
    """A node for the key, in front of everything that is computed."""
    first = next(node for node in graph.nodes if node.op != "placeholder")
    value = torch.empty((), dtype=torch.int64, device="meta")
    record = NodeInfo(value, layout=Layout(()), random=True)
    edit = Rewriter(graph)
    return edit.add(stream_key, (), record=record, before=first, name="stream_key")


@contextmanager
def _stream(seed: int, device: torch.device) -> Iterator[None]:
    """Let the device's own generator be at the start of a stream; afterwards it is as before."""
    generator = default_generator(device)
    state = generator.get_state()
    generator.manual_seed(seed)
    try:
        yield
    finally:
        generator.set_state(state)


def _device(args: Sequence[object], kwargs: Mapping[str, object]) -> torch.device:
    """Where an op draws."""
    given = kwargs.get("device") or next((x.device for x in args if isinstance(x, Tensor)), "cpu")
    assert isinstance(given, (torch.device, str))
    return torch.device(given)


def _implement(name: str, run: Operator) -> OpOverload:
    """Implement an op that draws from a stream by one that draws from the device's generator."""

    def draws(key: Tensor, draw: int, part: int, *args: object, **kwargs: object) -> object:
        with _stream(stream_seed(int(key.item()), draw, part), _device(args, kwargs)):
            return run(*args, **kwargs)

    def traces(key: Tensor, draw: int, part: int, *args: object, **kwargs: object) -> object:
        return run(*args, **kwargs)

    return implement(name, draws, traces)


def _define(name: str, rest: str) -> None:
    define(f"{name}(Tensor key, int draw, int part, {rest}", draws=True)


_TWINS: dict[OpOverload, OpOverload] = {}


def on_stream(op: OpOverload) -> OpOverload:
    """The op that draws from a stream what `op` draws from the device's generator."""
    if op not in _TWINS:
        head, _, rest = str(op._schema).partition("(")
        name = "stream_" + head.partition("::")[2]
        _define(name, rest)
        _TWINS[op] = _implement(name, op)
    return _TWINS[op]


def _flips(size: Sequence[int], p: float, device: torch.device) -> Tensor:
    return torch.empty(size, dtype=torch.bool, device=device).bernoulli_(1 - p)


_define("stream_kept", "SymInt[] size, float p, *, Device device) -> Tensor")
_kept = _implement("stream_kept", _flips)


def drawn_apart(
    op: OpOverload, key: Tensor, draw: int, part: int, *args: object, **kwargs: object
) -> object:
    """What a random op of `on_stream` gives for this device's shard; no gradient."""
    mine = [x.detach() if isinstance(x, Tensor) else x for x in args]
    return op(key, draw, part, *mine, **kwargs)


def dropped_apart(
    x: Tensor, key: Tensor, draw: int, part: int, p: float, dims: int | None = None
) -> Tensor:
    """Dropout of this device's shard; with `dims`, whole slices of the first so many dims."""
    return scaled(x, kept_apart(x, key, draw, part, p, dims), p)


def kept_apart(
    x: Tensor, key: Tensor, draw: int, part: int, p: float, dims: int | None = None
) -> Tensor:
    """The mask of `dropped_apart`."""
    mask: Tensor = _kept(key, draw, part, _size(x, dims), p, device=x.device)
    return mask


def _size(x: Tensor, dims: int | None) -> Sequence[int]:
    """The size of a mask: ones after the first `dims` dims."""
    return x.shape if dims is None else (*x.shape[:dims], *[1] * (x.dim() - dims))


def dropped_with_mask_apart(
    x: Tensor, key: Tensor, draw: int, part: int, p: float
) -> tuple[Tensor, Tensor]:
    """Dropout of this device's shard, and its mask."""
    kept = kept_apart(x, key, draw, part, p)
    return scaled(x, kept, p), kept


def scaled(x: Tensor, kept: Tensor, p: float) -> Tensor:
    """What is kept of `x`, so that its mean stays."""
    scale = 1 / (1 - p) if p < 1 else 0.0
    if x.dtype.itemsize < 4:
        return x * kept * scale  # the scale itself would be rounded
    return x * kept.to(x.dtype).mul_(scale)


_ALPHA = 1.7580993408473766
"""Minus the limit of SELU (Klambauer et al., 2017), which alpha dropout puts for what it drops."""


def alpha_dropped_apart(
    x: Tensor, key: Tensor, draw: int, part: int, p: float, dims: int | None = None
) -> Tensor:
    """Alpha dropout of this device's shard, which keeps mean and variance, as ATen's."""
    mask: Tensor = _kept(key, draw, part, _size(x, dims), p, device=x.device)
    kept = mask.to(x.dtype)
    if p == 1:
        return x * kept
    scale: float = ((_ALPHA**2 * p + 1) * (1 - p)) ** -0.5
    return x * (kept * scale) + ((kept - 1) * (_ALPHA * scale) + _ALPHA * scale * p)


def rrelu_apart(
    op: OpOverload, x: Tensor, key: Tensor, draw: int, part: int, lower: float, upper: float
) -> Tensor:
    """Leaky ReLU with random slopes, which `op` draws for this device's shard."""
    slope = op(key, draw, part, x.detach(), float(lower), float(upper))
    return torch.where(x > 0, x, x * slope)
