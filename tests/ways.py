"""Both ways of a reshard on this rank, as a step program sends them."""

from __future__ import annotations

from shardlang.ir.reshard import Reshard
from shardlang.runtime.collectives import Action, Routed, connected
from shardlang.runtime.groups import Groups
from shardlang.runtime.lower import lower


def there(reshard: Reshard, groups: Groups, label: str = "") -> Action:
    """What moves a value."""
    return connected(lower(reshard.forward, groups, label))


def back(reshard: Reshard, groups: Groups) -> Action:
    """What moves its gradient."""
    return connected(lower(reshard.adjoint, groups))


def routed(reshard: Reshard, groups: Groups) -> tuple[Routed, Routed]:
    """The same of a dispatch or collect, whose rows have groups."""
    return Routed(reshard.forward, groups), Routed(reshard.adjoint, groups)
