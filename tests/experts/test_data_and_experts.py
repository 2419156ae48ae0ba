"""The batch over `dp*ep`, the experts over `ep`: rows travel within the groups of `ep` alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.broad import sampled
from tests.commands import ROOT, document

SPEC = ROOT / "tests" / "spec" / "specs" / "04_mixtral.shard"
CONFIG = {
    "model_type": "mixtral",
    "hidden_size": 32,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_local_experts": 9,
    "num_experts_per_tok": 2,
    "vocab_size": 51,
    "router_aux_loss_coef": 0.1,
    "output_router_logits": True,
}
IMPLEMENTATIONS = ("grouped_mm", "batched_mm")


@pytest.mark.parametrize("implementation", sampled(IMPLEMENTATIONS, ["grouped_mm"]))
def test_rows_travel_whatever_computes_the_experts(implementation: str, tmp_path: Path) -> None:
    shutil.copy(SPEC, tmp_path / "mixtral.shard")
    (tmp_path / "mixtral.json").write_text(json.dumps(CONFIG))
    path = tmp_path / "mixtral.shard"
    path.write_text(SPEC.read_text().replace("batched_mm", implementation).replace("64]", "11]"))
    plan = document("plan", path)
    routed = [row for row in plan["collectives"] if row["op"] == "all_to_all"]
    assert {tuple(row["axes"]) for row in routed} == {("ep",)}
    assert sum(row["count"] for row in routed) == 4
    found = document("verify", path)
    assert found["gradients"]["max_error"] < 1e-9
