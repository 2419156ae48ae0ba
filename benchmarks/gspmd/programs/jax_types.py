"""What the programs in JAX are given and give."""

from __future__ import annotations

from collections.abc import Callable

from jax import Array

Arrays = dict[str, Array]
"""Parameters, inputs or results by their names in PyTorch."""

Hold = Callable[[str, Array], Array]
"""Puts an inner value into the layout that the spec states for it, if it states one."""
