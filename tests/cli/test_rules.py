"""`shardlang rules`: the table, and how much of DTensor's it covers."""

from __future__ import annotations

from shardlang.rules.reasons import REASONS
from tests.commands import document, shardlang


def test_the_document_lists_rules_and_coverage() -> None:
    found = document("rules")
    names = {row["op"] for row in found["rules"]}
    assert {"aten.linear.default", "aten.view.default", "aten.conv2d.default"} <= names
    assert found["dtensor"]["percent"] >= 85
    assert found["dtensor"]["percent_proven"] >= 85
    assert not names.intersection(found["dtensor"]["missing"])


def test_every_op_of_dtensor_without_a_rule_has_a_reason() -> None:
    missing = document("rules")["dtensor"]["missing"]
    assert missing.keys() <= REASONS.keys()


def test_a_name_narrows_the_list() -> None:
    status, out, _ = shardlang("rules", "aten.cat.")
    assert status == 0
    assert out.splitlines()[0].startswith("aten.cat.default")
    assert "1 rules" in out
