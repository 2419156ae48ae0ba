"""What transformers' mixtures of experts compute, as products by groups of rows.

transformers has two ways to compute them together: `grouped_mm` sorts the tokens of the whole
batch by expert, and `batched_mm` copies a matrix for every token. The same product without the sort
or the copies is token by token, and so can be split along the tokens, or its rows sent to the
experts.
"""

from __future__ import annotations

from torch import Tensor

from shardlang.capture.hf_types import Experts
from shardlang.rules.experts.local_grouped import grouped_mm


def experts_forward(
    module: Experts, hidden: Tensor, expert_index: Tensor, expert_weights: Tensor
) -> Tensor:
    """The forward of a module of experts.

    Shapes: hidden `t d`; the experts chosen for every token, and their weights, `t k`.
    """
    chosen = expert_index.shape[-1]
    groups, scale = expert_index.reshape(-1), expert_weights.reshape(-1, 1)
    made = hidden.repeat_interleave(chosen, dim=0)
    made = _project(module, "gate_up_proj" if module.has_gate else "up_proj", made, groups)
    made = module._apply_gate(made) if module.has_gate else module.act_fn(made)
    made = _project(module, "down_proj", made, groups)
    if getattr(module, "has_post_expert_norm", False):
        made = module.post_expert_norm(made)
    made = (made * scale).view(hidden.shape[0], chosen, hidden.shape[-1])
    return made.sum(dim=1).to(hidden.dtype)


def _project(module: Experts, name: str, x: Tensor, groups: Tensor) -> Tensor:
    """Every row times its expert's matrix, plus its bias."""
    weight = getattr(module, name)
    matrices = weight if module.is_transposed else weight.transpose(1, 2)
    made: Tensor = grouped_mm(x.to(weight.dtype), matrices, groups)
    return made + getattr(module, f"{name}_bias")[groups] if module.has_bias else made
