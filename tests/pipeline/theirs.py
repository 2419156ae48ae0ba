"""The action lists that torch's own schedules make."""

from __future__ import annotations

import torch.distributed.pipelining.schedules as torch_schedules


def theirs(name: str, ranks: int, microbatches: int, virtual: int = 1) -> list[list[str]]:
    """Torch's actions of every rank, without idle times; overlapped ones in turn."""
    kind = torch_schedules.get_schedule_class(name)
    made = kind.__new__(kind)
    made.pp_group_size, made.n_local_stages, made._n_microbatches = ranks, virtual, microbatches
    made._num_stages = made.num_stages = ranks * virtual
    made.number_of_rounds = max(1, microbatches // ranks)
    made.microbatches_per_round = microbatches // made.number_of_rounds
    rows = []
    for rank in range(ranks):
        made.rank = rank
        row = made._calculate_single_rank_operations(rank)
        flat = [part for one in row if one is not None for part in one.sub_actions or (one,)]
        rows.append([str(one) for one in flat])
    return rows
