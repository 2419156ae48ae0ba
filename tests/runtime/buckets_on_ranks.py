"""Stored models on every rank: what they send, beside FSDP2, and how right their gradients are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import torch
from kinds import kind_of
from stored import frozen, stacked
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaConfig, LlamaForCausalLM

import shardlang

Sent = Counter[tuple[str, int]]
"""Kind of call and bytes of its message, by how often."""


class Boundary(TorchDispatchMode):
    """Counts the gathers and reduce-scatters of two ranks, with the bytes of whole messages."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: Sent = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        name = func.overloadpacket.__name__ if func.namespace == "c10d" else ""
        if name == "_allgather_base_":
            self._count("gather", args[0])
        elif name == "_reduce_scatter_base_":
            self._count("scatter", args[1])
        elif name == "alltoall_base_" and (kind := kind_of(name, args)) != "all_reduce":
            self.sent["gather" if kind == "all_gather" else "scatter", 2 * args[1].nbytes] += 1
        return func(*args, **(kwargs or {}))

    def _count(self, kind: str, message: Tensor) -> None:
        self.sent[kind, message.numel() * message.element_size()] += 1

    def take(self) -> Sent:
        """What was sent since the last time."""
        done, self.sent = self.sent, Counter()
        return done


def llama() -> LlamaForCausalLM:
    """Four layers, all sizes even."""
    config = LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=64, attn_implementation="sdpa",
    )  # fmt: skip
    torch.manual_seed(0)
    return LlamaForCausalLM(config).double()


def _step(model: nn.Module, batch: dict[str, Any]) -> list[Sent]:
    """What a forward sends, and its backward."""
    with Boundary() as boundary:
        loss = model(**batch)["loss"]
        forward = boundary.take()
        loss.backward()
        return [forward, boundary.take()]


def wrapped(ids: Tensor) -> list[Sent]:
    """FSDP2, by layer and around all; the layers are kept whole for the backward."""
    model, mesh = llama(), init_device_mesh("cpu", (2,))
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh, reshard_after_forward=False)
    fully_shard(model, mesh=mesh, reshard_after_forward=False)
    return _step(model, {"input_ids": ids, "labels": ids})


def stored(
    build: Callable[[], nn.Module], inputs: str, batch: dict[str, Tensor], again: str = ""
) -> tuple[list[Sent], float]:
    """What a stored model sends, without gradients too, and how far its gradients are off."""
    path = Path(mkdtemp()) / "spec.shard"
    path.write_text(f'mesh {{ fsdp = 2 }}\ninput {inputs}\nstore "**" over fsdp {again}\n')
    model, plain = shardlang.compile(path, model=build).load(seed=1), build()
    plain.load_state_dict({n: x.full_tensor() for n, x in model.state_dict().items()})
    plain(**batch)["loss"].backward()
    shards = model.shard_inputs(**batch)
    with Boundary() as boundary, torch.no_grad():
        model(**shards)
    sent = [boundary.take(), *_step(model, shards)]
    pairs = zip(model.parameters(), plain.parameters(), strict=True)
    trained = [(mine, theirs) for mine, theirs in pairs if theirs.requires_grad]
    gaps = [(mine.grad.full_tensor() - theirs.grad).abs().max().item() for mine, theirs in trained]
    return sent, max(gaps)


def everything() -> dict[str, Any]:
    """One job of 2 processes."""
    ids = torch.arange(16).reshape(2, 8)
    whole = {"input_ids": ids, "labels": ids}
    flat = {"ids": torch.arange(9) % 7, "labels": torch.arange(9) * 3 % 7}
    return {
        "FSDP2": wrapped(ids[:1]),
        "llama": stored(llama, "input_ids, labels : i64[2, 8] [fsdp, _]", whole),
        **{
            build.__name__: stored(build, "ids, labels : i64[9] [fsdp]", flat, "regather")
            for build in (stacked, frozen)
        },
    }
