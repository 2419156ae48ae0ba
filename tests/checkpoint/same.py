"""Whether two trees of values are the same, types and all."""

from __future__ import annotations

import numpy as np
import torch


def same(found: object, wanted: object) -> bool:
    """Equal to the bit, of equal types."""
    if type(found) is not type(wanted):
        return False
    if isinstance(wanted, torch.Tensor):
        assert isinstance(found, torch.Tensor)
        return found.dtype == wanted.dtype and torch.equal(found, wanted)
    if isinstance(wanted, np.ndarray):
        assert isinstance(found, np.ndarray)
        return found.dtype == wanted.dtype and bool((found == wanted).all())
    if isinstance(wanted, dict):
        assert isinstance(found, dict)
        return list(found) == list(wanted) and all(same(found[k], wanted[k]) for k in wanted)
    if isinstance(wanted, list | tuple):
        assert isinstance(found, list | tuple)
        return len(found) == len(wanted) and all(map(same, found, wanted))
    return found == wanted
