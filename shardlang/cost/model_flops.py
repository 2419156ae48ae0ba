"""The model's floating-point operations: those of the products of a forward and its backward.

They are those of the plain model. What a device computes again, what several devices compute alike
and what is done element by element do not count (Chowdhery et al., PaLM, appendix B).
"""

from __future__ import annotations

from collections import Counter

import torch
from torch import fx

from shardlang.ir.node import info, tensors_of
from shardlang.ir.program import LocalProgram, with_gradient
from shardlang.rules.call import Call


def model_flops(program: LocalProgram) -> dict[torch.dtype, int]:
    """The operations of a step, of all devices together, by the type that is multiplied.

    A forward alone where the program has no loss.
    """
    found: Counter[torch.dtype] = Counter()
    reached = with_gradient(program) if program.loss is not None else set[fx.Node]()
    for node in program.graph.nodes:
        sharding = info(node).sharding
        if sharding is None or not sharding.rule.products:
            continue
        rule, dtype = sharding.rule, tensors_of(node)[0].dtype
        found[dtype] += rule.flops()
        if node in reached:
            operands = enumerate(Call(node).operands)
            wanted = {i for i, operand in operands if info(operand).differentiable}
            found[dtype] += rule.backward_flops(wanted)
    return dict(found)
