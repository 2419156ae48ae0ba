"""shrink: a smaller model with the same mesh, the same divisibility and the same decisions.

Repeated layers, batch, sequence and widths are cut; a layer of each stage of a pipeline stays. The
number of heads, experts and packed blocks stays, and so does a width that an input has, such as the
head size of a cache. A size that leaves a remainder over the mesh keeps leaving one. That the
decisions are the same is checked, not assumed: the reshards of the small program, layer by layer,
must be those of the large one.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from shardlang.capture import HfSource, ModelSource
from shardlang.capture.hf import LAYERS
from shardlang.ir.graph import items_of, reshard_nodes, reshards_of
from shardlang.ir.mesh import product
from shardlang.ir.node import info
from shardlang.ir.program import LocalProgram
from shardlang.ir.reshard import Change
from shardlang.proof.shrink_stages import devices_of, layers_to_keep
from shardlang.proof.shrunk import CannotShrink, smaller
from shardlang.spec.types import Arguments, Axes, InputDecl, ModelRef, Spec

WIDTHS = ("intermediate_size", "ffn_dim", "encoder_ffn_dim", "decoder_ffn_dim", "n_inner", "d_ff",
          "vocab_size", "moe_intermediate_size", "shared_expert_intermediate_size")  # fmt: skip
HIDDEN = (("hidden_size", "num_attention_heads"), ("n_embd", "n_head"), ("d_model", "num_heads"),
          ("d_model", "encoder_attention_heads"))  # fmt: skip
HEAD_SIZES = ("head_dim", "d_kv")
SMALL_HEAD = 8
KEPT_LENGTH = 16


@dataclass(frozen=True, slots=True)
class Shrunk:
    """A smaller spec and what was cut, as text."""

    spec: Spec
    cut: tuple[str, ...]


def shrink(spec: Spec, source: ModelSource) -> Shrunk:
    """Cut a spec's model and inputs.

    Raises:
        CannotShrink: nothing can be cut.
    """
    arguments, cuts = _model_arguments(spec, source)
    inputs, more = _inputs(spec)
    if not cuts and not more:
        raise CannotShrink("neither the model's sizes nor its inputs can be cut")
    model: ModelRef = replace(spec.model, arguments=arguments)
    return Shrunk(replace(spec, model=model, inputs=inputs), (*cuts, *more))


def _model_arguments(spec: Spec, source: ModelSource) -> tuple[Arguments, list[str]]:
    if not isinstance(source, HfSource):
        return _cut_layers_only(spec)
    config = source.text_config
    shards, given = devices_of(spec), _given_sizes(spec)
    changes: dict[str, int] = {}
    for name in LAYERS:
        have = getattr(config, name, None)
        if isinstance(have, int) and have > (least := layers_to_keep(spec, have)):
            changes[name] = _kept_layers(config, have, least)
    for name in WIDTHS:
        have = getattr(config, name, None)
        if isinstance(have, int) and have not in given:
            changes[name] = smaller(have, shards * 2, 64 if name != "vocab_size" else 128)
    changes.update(_cut_heads(config, given))
    changes = {k: v for k, v in changes.items() if v != getattr(config, k, None)}
    kept = tuple((k, v) for k, v in spec.model.arguments if k not in changes)
    cuts = [f"{name} {getattr(config, name)} -> {value}" for name, value in changes.items()]
    return (*kept, *changes.items()), cuts


def _kept_layers(config: object, layers: int, least: int) -> int:
    """As few layers as may be, or as many as show every kind of layer."""
    kinds = getattr(config, "layer_types", None)
    if not kinds:
        return least
    seen = set(kinds)
    for count in range(least, layers + 1):
        if set(kinds[:count]) == seen:
            return count
    return layers


def _given_sizes(spec: Spec) -> set[int]:
    """Sizes of the features of inputs."""
    found: set[int] = set()
    for decl in spec.inputs:
        is_tokens = len(decl.shape) == 2 and not decl.dtype.startswith(("f", "bf"))
        found |= set() if is_tokens else set(decl.shape[1:])
    return found


def _cut_heads(config: object, given: set[int]) -> Iterator[tuple[str, int]]:
    """A smaller head size, unless an input has the present one; the number of heads stays."""
    for width, heads in HIDDEN:
        size, count = getattr(config, width, None), getattr(config, heads, None)
        if not (isinstance(size, int) and isinstance(count, int) and size % count == 0):
            continue
        if given & {size, size // count, *(getattr(config, n, None) for n in HEAD_SIZES)}:
            return
        if size // count > SMALL_HEAD:
            yield width, count * SMALL_HEAD
        for name in HEAD_SIZES:
            if isinstance(getattr(config, name, None), int):
                yield name, min(getattr(config, name), SMALL_HEAD)
        return


def _cut_layers_only(spec: Spec) -> tuple[Arguments, list[str]]:
    """A Python model: the arguments that count layers."""
    changes = {
        name: least
        for name, value in spec.model.arguments
        if name in LAYERS and isinstance(value, int)
        if value > (least := layers_to_keep(spec, value))
    }
    arguments = tuple((k, changes.get(k, v)) for k, v in spec.model.arguments)
    have = spec.model.kwargs
    return arguments, [f"{name} {have[name]} -> {value}" for name, value in changes.items()]


def _inputs(spec: Spec) -> tuple[tuple[InputDecl, ...], list[str]]:
    """Inputs with a small batch and, for token ids, a short sequence."""
    cut, notes = [], []
    for decl in spec.inputs:
        shape = tuple(_input_size(spec, decl, dim, size) for dim, size in enumerate(decl.shape))
        if shape != decl.shape:
            notes.append(f"input {decl.pattern} {list(decl.shape)} -> {list(shape)}")
        cut.append(replace(decl, shape=shape))
    return tuple(cut), notes


def _input_size(spec: Spec, decl: InputDecl, dim: int, size: int) -> int:
    entry = decl.layout.entries[dim] if dim < len(decl.layout.entries) else None
    axes = entry.axes if isinstance(entry, Axes) else ()
    shards = math.prod(axis.size for axis in spec.mesh.named(axes))
    if dim == 0:
        shards *= spec.accumulate.count if spec.accumulate is not None else 1
        return smaller(size, shards, 2 * shards)
    if dim == 1 and len(decl.shape) == 2 and decl.dtype in ("i64", "i32", "bool"):
        return smaller(size, devices_of(spec), KEPT_LENGTH)
    return size


def check_same_decisions(large: LocalProgram, small: LocalProgram) -> None:
    """Compare the reshards of two programs, layer by layer.

    Raises:
        CannotShrink: they differ; the message names the first place.
    """
    ours, theirs = reshards_by_place(large), reshards_by_place(small)
    for place, reshards in theirs.items():
        if ours.get(place, Counter()) != reshards:
            raise CannotShrink(
                f"the smaller model is resharded otherwise in `{place or 'the model'}`: "
                f"{_words(reshards)} instead of {_words(ours.get(place, Counter()))}"
            )
    layer = re.compile(r"\.\d+(\.|$)")
    for place in ours.keys() - theirs.keys():
        if not layer.search(place):
            raise CannotShrink(f"the smaller model lacks the reshards of `{place}`")


def _words(reshards: Counter[str]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(reshards.items())) or "nothing"


def reshards_by_place(program: LocalProgram) -> dict[str, Counter[str]]:
    """For every module, its reshards: kind, axes, and backward move.

    Those that share a call count apart, each at its reader. Steps of parameters that gradient
    buckets hold are left out.
    """
    found: dict[str, Counter[str]] = {}
    for node in reshard_nodes(program.graph):
        pairs = reshards_of(node)
        for place, item in items_of(node).items():
            value, reshard = pairs[place]
            if value.op == "placeholder" and reshard.kind is Change.VARY:
                continue
            axes, back = product(reshard.axes), reshard.adjoint.kind.value
            text = f"{reshard.kind} over {axes} ({back})"
            found.setdefault(info(item).module, Counter())[text] += 1
    return found


def describe(cut: Sequence[str]) -> str:
    """What was cut, in one line."""
    return "; ".join(cut)
