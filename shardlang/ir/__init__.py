"""The intermediate representation: mesh, layouts, steps and the sharded graph."""

from shardlang.ir.layout import DimLayout, Factor, Layout, dtype_name, printed_type
from shardlang.ir.mesh import Axis, Coord, Mesh

__all__ = ["Axis", "Coord", "DimLayout", "Factor", "Layout", "Mesh", "dtype_name", "printed_type"]
