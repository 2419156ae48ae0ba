"""Joining a `Spec` to the names of a model."""

from shardlang.bind.bind import bind
from shardlang.bind.types import Binding, ModelNames

__all__ = ["Binding", "ModelNames", "bind"]
