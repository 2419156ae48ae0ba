"""What shows without a look at every module, and what may not be taken note of."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from shardlang.runtime.unchanged import Unchanged, may_be_noted


def modules() -> list[nn.Module]:
    """A module with a child, and one with a setting, without a bias."""
    linear = nn.Linear(2, 2, bias=False)
    return [nn.Sequential(linear, nn.Dropout(1)), linear]


CHANGES: dict[str, Callable[[list[nn.Module]], object]] = {
    "setting": lambda found: setattr(found[1], "in_features", 3),
    "setting of another type": lambda found: setattr(found[1], "in_features", 2.0),
    "setting that is a tensor": lambda found: setattr(found[1], "in_features", torch.ones(2)),
    "setting that is gone": lambda found: delattr(found[1], "in_features"),
    "attribute": lambda found: setattr(found[1], "more", 1),
    "mode": lambda found: found[1].eval(),
    "child": lambda found: setattr(found[0], "1", nn.Dropout(1)),
    "another child": lambda found: setattr(found[0], "2", nn.Dropout(1)),
    "hook": lambda found: found[1].register_forward_hook(lambda *_: None),
    "bias": lambda found: setattr(found[1], "bias", nn.Parameter(torch.ones(2))),
    "parameter": lambda found: found[1].register_parameter("w", nn.Parameter(torch.ones(2))),
    "buffer": lambda found: found[1].register_buffer("b", torch.ones(2)),
    "class": lambda found: setattr(found[1], "__class__", nn.Identity),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_shows(name: str) -> None:
    found = modules()
    unchanged = Unchanged(found, [(), ("in_features", "out_features")])
    assert unchanged()
    CHANGES[name](found)
    assert not unchanged()


def test_a_parameter_that_takes_the_place_of_another_is_not_compared() -> None:
    """The tables look at it; to compare two of them may be a collective."""
    found = modules()
    unchanged = Unchanged(found, [(), ("in_features",)])
    found[1].weight = nn.Parameter(torch.full((2, 2), torch.nan))
    assert unchanged()


@pytest.mark.parametrize("value", [[1], {"a": 1}, {1}, torch.ones(2)])
def test_what_changes_in_place_or_is_to_be_let_go_is_not_noted(value: object) -> None:
    linear = nn.Linear(2, 2)
    assert may_be_noted(linear)
    vars(linear)["more"] = value
    assert not may_be_noted(linear)
