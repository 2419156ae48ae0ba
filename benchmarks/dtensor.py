"""Llama with tensor parallelism by `torch.distributed.tensor.parallel`."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    loss_parallel,
    parallelize_module,
)
from torch.nn import functional


class DTensorLlama(nn.Module):
    """A transformers Llama whose weights become DTensors."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        mesh = init_device_mesh("cpu", (torch.distributed.get_world_size(),))
        layer = {
            **{f"self_attn.{n}_proj": ColwiseParallel() for n in "qkv"},
            "self_attn.o_proj": RowwiseParallel(),
            "mlp.gate_proj": ColwiseParallel(),
            "mlp.up_proj": ColwiseParallel(),
            "mlp.down_proj": RowwiseParallel(),
        }
        plan = {f"model.layers.*.{name}": style for name, style in layer.items()}
        plan["model.embed_tokens"] = RowwiseParallel(input_layouts=Replicate())
        plan["lm_head"] = ColwiseParallel(output_layouts=Shard(-1), use_local_output=False)
        self.model = parallelize_module(model, mesh, plan)

    def step(self, ids: Tensor, labels: Tensor) -> Tensor:
        """Forward and backward; the loss."""
        with loss_parallel():
            logits = self.model(input_ids=ids, use_cache=False).logits
            labels = functional.pad(labels, (0, 1), value=-100)[:, 1:]
            loss = functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
            loss.backward()
        return loss.full_tensor() if isinstance(loss, DTensor) else loss

    def names(self) -> dict[str, nn.Parameter]:
        """Parameters by name."""
        return dict(self.model.named_parameters())
