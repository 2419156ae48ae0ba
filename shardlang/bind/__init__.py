"""Joining a `Spec` to the names of a model."""

from shardlang.bind.bind import bind
from shardlang.bind.types import Binding, ModelNames, Placed, TensorInfo

__all__ = ["Binding", "ModelNames", "Placed", "TensorInfo", "bind"]
