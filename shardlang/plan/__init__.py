"""What a program costs: layouts, collectives, bytes and memory, before it runs."""

from shardlang.plan.collect import make_plan, plan_of
from shardlang.plan.document import plan_document
from shardlang.plan.moments import Memory
from shardlang.plan.types import CollectiveRow, Plan, TensorRow, Value

__all__ = [
    "CollectiveRow",
    "Memory",
    "Plan",
    "TensorRow",
    "Value",
    "make_plan",
    "plan_document",
    "plan_of",
]
