"""Operations that are computed again, at equal bytes kept: ours beside torch's min-cut partitioner.

A small Llama at world size 1. For each memory budget of torch the bytes that its partition keeps
are measured, by the storages that its forward hands over, and the operations of products that
forward and backward do together, less those of the partition that computes nothing again. Ours is
the choice with the least work that keeps no more.

    python -m benchmarks.recompute --layers 4 --width 256
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch._functorch.config as functorch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch._functorch.aot_autograd import aot_module, make_boxed_func
from torch._functorch.partitioners import default_partition, min_cut_rematerialization_partition
from torch.utils.flop_counter import FlopCounterMode

from shardlang.compiler.driver import compile_spec
from shardlang.passes.step.choose import Choosing
from shardlang.passes.step.cut import Choice, Cut
from shardlang.passes.step.decide import from_loss
from shardlang.passes.step.hull import hull, packed, parts_of
from shardlang.passes.step.regions import repeatable
from shardlang.spec import load_spec_text

BUDGETS = (0.8, 0.6, 0.5, 0.4, 0.2)


class Layer(nn.Module):
    """A layer of a Llama without the angles of positions: norm, attention, norm, gated product."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList(nn.RMSNorm(width, eps=1e-6) for _ in range(2))
        self.q, self.k, self.v, self.o = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.gate, self.up = (nn.Linear(width, 3 * width, bias=False) for _ in range(2))
        self.down = nn.Linear(3 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Shapes `b s d` to `b s d`."""
        y = self.norms[0](x)
        q, k, v = (
            one(y).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for one in (self.q, self.k, self.v)
        )
        scores = (q @ k.transpose(-1, -2)) * q.shape[-1] ** -0.5
        x = x + self.o((scores.softmax(-1) @ v).transpose(1, 2).flatten(-2))
        y = self.norms[1](x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


class Llama(nn.Module):
    """Layers, and a loss of all scores."""

    def __init__(self, layers: int = 4, width: int = 256, heads: int = 4, words: int = 512) -> None:
        super().__init__()
        self.embed = nn.Embedding(words, width)
        self.layers = nn.ModuleList(Layer(width, heads) for _ in range(layers))
        self.norm = nn.RMSNorm(width, eps=1e-6)
        self.head = nn.Linear(width, words, bias=False)

    def forward(self, ids: Tensor, labels: Tensor) -> Tensor:
        """Shapes `b s` and `b s` to a number."""
        x = self.embed(ids)
        for layer in self.layers:
            x = layer(x)
        return F.cross_entropy(self.head(self.norm(x)).flatten(0, 1), labels.flatten())


@dataclass(frozen=True, slots=True)
class Kept:
    """What a partition keeps in bytes, and the operations of products in its two halves."""

    bytes: int
    flops: int


Partition = Callable[..., tuple[fx.GraphModule, fx.GraphModule]]


def torch_keeps(model: nn.Module, inputs: Sequence[Tensor], partition: Partition) -> Kept:
    """What torch keeps."""
    flops, kept = [0], [0]

    def forward(module: fx.GraphModule, _: object) -> Callable[..., object]:
        def run(*given: Tensor) -> object:
            with FlopCounterMode(display=False) as counter:
                made = fx.Interpreter(module).run(*given)
            flops[0] += counter.get_total_flops()
            there = {x.untyped_storage().data_ptr() for x in (*given, made[0])}
            saved = {
                s.data_ptr(): s.nbytes() for s in (x.untyped_storage() for x in _tensors(made))
            }
            kept[0] = sum(size for place, size in saved.items() if place not in there)
            return made

        return run

    def backward(module: fx.GraphModule, _: object) -> Callable[..., object]:
        def run(*given: object) -> object:
            with FlopCounterMode(display=False) as counter:
                made = fx.Interpreter(module).run(*given)
            flops[0] += counter.get_total_flops()
            return made

        return run

    compiled = aot_module(
        model, fw_compiler=_boxed(forward), bw_compiler=_boxed(backward), partition_fn=partition
    )
    compiled(*inputs).backward()
    return Kept(kept[0], flops[0])


def _tensors(values: Sequence[object]) -> list[Tensor]:
    return [one for one in values if isinstance(one, Tensor)]


def _boxed(make: Callable[..., Callable[..., object]]) -> Callable[..., Callable[..., object]]:
    return lambda module, given: make_boxed_func(make(module, given))


def within(cut: Cut, most_bytes: int) -> Choice:
    """The choice with the least work that keeps no more than some bytes."""
    choices = hull(cut)
    place = next(i for i, one in enumerate(choices) if one.bytes <= most_bytes)
    if place == 0:
        return choices[0]
    made = packed(cut, choices[0], parts_of(cut, choices), most_bytes)
    assert made is not None
    return made


def ours(layers: int, width: int, rows: int, tokens: int) -> Cut:
    """Our choices for the same model."""
    spec, found = load_spec_text(
        f"""mesh {{ dp = 1 }}
model "{__file__}:Llama"(layers = {layers}, width = {width})
input ids, labels : i64[{rows}, {tokens}] below 512 [dp, _]
""",
        str(Path(__file__)),
    )
    assert spec is not None, found
    program = compile_spec(spec).program
    step = from_loss(program, [leaf.name for leaf in program.leaves if leaf.trainable])
    choosing = Choosing.of(step, ())
    return choosing.cut(repeatable(step))


def compare(layers: int, width: int, rows: int, tokens: int) -> list[tuple[float, Kept, Kept]]:
    """Budget, what torch keeps and computes again, and what we do."""
    model = Llama(layers, width)
    ids = torch.arange(rows * tokens).reshape(rows, tokens) % 512
    least = torch_keeps(model, (ids, ids), default_partition).flops
    cut = ours(layers, width, rows, tokens)
    found = []
    for budget in BUDGETS:
        with functorch.patch(activation_memory_budget=budget):
            theirs = torch_keeps(model, (ids, ids), min_cut_rematerialization_partition)
        choice = within(cut, theirs.bytes)
        flops = sum(cut.prices.flops(node) for node in choice.again)
        found.append((budget, Kept(theirs.bytes, theirs.flops - least), Kept(choice.bytes, flops)))
    return found


def main() -> None:
    """Print a line per budget."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, value in (("layers", 4), ("width", 256), ("rows", 4), ("tokens", 128)):
        parser.add_argument(f"--{name}", type=int, default=value)
    given = parser.parse_args()
    print("budget  torch: bytes kept, operations again    ours: bytes kept, operations again")
    for budget, theirs, mine in compare(given.layers, given.width, given.rows, given.tokens):
        print(f"{budget:6} {theirs.bytes:18} {theirs.flops:18} {mine.bytes:20} {mine.flops:18}")


if __name__ == "__main__":
    main()
